"""What a long conversation costs to keep: each turn its own size, never the conversation's."""

from __future__ import annotations

from pathlib import Path

from long_conversation import CONTENT_BYTES, Sample, hold


def test_bytes_stored_per_turn_stay_flat_over_200_turns(tmp_path: Path) -> None:
    samples = hold(tmp_path, 200)
    early, late = _per_turn(samples[0], samples[49]), _per_turn(samples[150], samples[199])
    assert CONTENT_BYTES < early < 4 * CONTENT_BYTES
    assert late <= 1.25 * early, f"{early:.0f} bytes per turn at first, {late:.0f} in the end"
    # The requests are what grows; a store that kept them would hold some forty times as much.
    assert samples[199].request > 20 * samples[0].request
    assert samples[199].stored < sum(sample.request for sample in samples) / 10


def _per_turn(before: Sample, after: Sample) -> float:
    return (after.stored - before.stored) / (after.turn - before.turn)
