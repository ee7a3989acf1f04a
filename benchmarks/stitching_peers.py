"""multiview-stitcher on the tiles of `stitching.py`, run by a Python that has it; called by that benchmark.

A false link is made where the peer looks at a pair: of every so many pairs, the second crop is replaced
by itself turned, by the crop of another pair, by itself displaced, or by noise.
"""

import json
import sys
import time
import warnings

import dask
import numpy as np


class FalseLinks:
    """Phase correlation of the peer, with a share of the pairs made false."""

    def __init__(self, share, seed):
        self.share, self.rng = share, np.random.default_rng(1000 + seed)
        self.seen = self.false = 0
        self.before = None

    def content(self, crop):
        """Return what stands in for the moving crop of a false pair."""
        kind, values = self.false % 4, np.asarray(crop)
        turned = values[::-1, ::-1, ::-1]
        if kind == 1 and self.before is not None:
            other = self.before
            pad = [(0, max(n - m, 0)) for n, m in zip(values.shape, other.shape, strict=True)]
            return np.pad(other, pad, mode="reflect")[tuple(slice(n) for n in values.shape)]
        if kind == 2:
            return np.roll(values, (1, *self.rng.integers(4, 12, 2)), axis=(0, 1, 2))
        if kind == 3:
            return self.rng.poisson(5.0, values.shape).astype(values.dtype)
        return turned

    def register(self, fixed_data, moving_data, **options):
        """Return what the peer's own function makes of a pair."""
        from multiview_stitcher import registration

        self.seen += 1
        own = np.asarray(moving_data).copy()
        if self.rng.random() < self.share:
            moving_data = moving_data.copy(data=np.ascontiguousarray(self.content(moving_data)))
            self.false += 1
        self.before = own
        return registration.phase_correlation_registration(fixed_data, moving_data, **options)


def main():
    """Print positions, CPU seconds and the numbers of pairs and false pairs, as JSON."""
    from multiview_stitcher import msi_utils, registration
    from multiview_stitcher import spatial_image_utils as images

    path, share, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    content = np.load(path)
    stage, links = content["stage"], FalseLinks(share, seed)
    begin = time.process_time()
    scenes = []
    for tile, at in zip(content["tiles"], stage, strict=True):
        image = images.get_sim_from_array(
            tile, dims=["z", "y", "x"], scale=dict.fromkeys("zyx", 1.0),
            translation=dict(zip("zyx", map(float, at), strict=True)), transform_key="stage",
        )  # fmt: skip
        scenes.append(msi_utils.get_msim_from_sim(image, scale_factors=[]))
    with dask.config.set(scheduler="synchronous"):
        maps = registration.register(
            scenes, transform_key="stage", new_transform_key="placed", reg_channel_index=0,
            registration_binning=dict.fromkeys("zyx", 1), pre_registration_pruning_method=None,
            pairwise_reg_func=links.register, post_registration_do_quality_filter=True,
        )  # fmt: skip
    moved = np.array([np.asarray(m).reshape(4, 4)[:3, 3] for m in maps])
    said = {"positions_px": (stage + moved).tolist(), "cpu_s": time.process_time() - begin}
    print("\n" + json.dumps({**said, "pairs": links.seen, "false": links.false}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
