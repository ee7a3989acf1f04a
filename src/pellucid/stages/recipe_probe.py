"""How long a recipe will take: stub."""

from pellucid.stages.recipe_plan import RecipePlan


def estimated_seconds(plan: RecipePlan) -> dict[str, float | None]:
    """Nothing yet."""
    return {}
