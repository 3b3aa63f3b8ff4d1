"""The gates of many segments at once: as sure together as one gate is alone (Holm, 1979).

Holm's rule needs the comparisons of all segments, and segments come one by
one.  Most need not wait, though: one that is as sure as Bonferroni's rule asks
stands whatever the others come to, and one that a single gate would refuse
falls.  Only those in between are kept until the last one is there.
"""

from __future__ import annotations

from collections.abc import Iterable

from factory.spec import Gates, Variant
from factory.variants.making import Made, judged_again
from factory.variants.multiplicity import adjusted_confidence, stands, strictest_confidence


class JointGate:
    """Judges the segments of one request.

    Args:
        gates: Of the request; their confidence is that of all segments together.
        n_segments: That are judged, those that fail or were made earlier among them.
        earlier: Variants that an earlier attempt has registered or rejected.
    """

    def __init__(self, gates: Gates, *, n_segments: int, earlier: Iterable[Variant] = ()) -> None:
        self._gates, self._n = gates, n_segments
        # What an earlier attempt's comparisons came to is not kept: its champions stood, the others are taken to fall.
        self._known = [1.0 if variant.state == "registered" else 0.0 for variant in earlier]
        self._waiting: list[Made] = []

    @property
    def sure(self) -> float:
        """The confidence with which the improvement of each segment is judged when it is made."""
        return strictest_confidence(self._n, confidence=self._gates.confidence)

    def settled(self, made: Made) -> bool:
        """Take a segment's variant, judged with :attr:`sure`; whether that verdict stays as it is."""
        fallen = [check.name for check in made.verdict.checks if not check.passed]
        sure_alone = stands(made.comparison.probability, self._gates.confidence)
        if fallen == ["improvement"] and sure_alone and made.comparison.difference > self._gates.min_improvement:
            self._waiting.append(made)
            return False
        self._known.append(made.comparison.probability)
        return True

    def rest(self) -> list[Made]:
        """Return those that had to wait, judged together with all others; a segment that failed counts as fallen."""
        found = [*(made.comparison.probability for made in self._waiting), *self._known]
        missing = [0.0] * max(self._n - len(found), 0)
        needed = adjusted_confidence([*found, *missing], confidence=self._gates.confidence)
        return [judged_again(made, self._gates, sure=least) for made, least in zip(self._waiting, needed, strict=False)]
