"""What a long conversation costs to keep: each turn its own size, never the conversation's."""

from __future__ import annotations

from pathlib import Path

from long_conversation import CONTENT_BYTES, Sample, hold


def test_bytes_stored_per_turn_stay_flat_over_200_turns(tmp_path: Path) -> None:
    samples = hold(tmp_path, 200, at=(1, 50, 151, 200))
    early, late = _per_turn(samples[1], samples[50]), _per_turn(samples[151], samples[200])
    assert CONTENT_BYTES < early < 4 * CONTENT_BYTES
    assert late <= 1.25 * early, f"{early:.0f} bytes per turn at first, {late:.0f} in the end"
    # It is the requests that grow: a store that kept them would hold a hundred times the last one.
    assert samples[200].request > 20 * samples[1].request
    assert samples[200].stored < 10 * samples[200].request


def _per_turn(before: Sample, after: Sample) -> float:
    return (after.stored - before.stored) / (after.turn - before.turn)
