"""What is declared of each metric, as producers and readers need to know it.

The operator writes it in `config/tallystream.toml`; the worker publishes it in `tally:meta`; producers and
readers take it from there, so that nobody has to copy a configuration file to every application.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tallystream.errors import ConfigurationError, EventError
from tallystream.event import check_metric


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one metric."""

    description: str = ""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The declared metrics by name."""

    metric: dict[str, Metric]

    def __post_init__(self) -> None:
        for name in self.metric:
            try:
                check_metric(name)
            except EventError as error:
                raise ConfigurationError(f"[metric.{name[:64]}]: the name {error.problem}") from None

    def refuse_undeclared(self, metric: str) -> None:
        """Raise `EventError` where `metric` is not declared."""
        if metric not in self.metric:
            check_metric(metric)  # what could not be declared is not repeated in a message
            declared = ", ".join(sorted(self.metric))
            raise EventError(
                "metric",
                f"{metric} is not declared; declared are {declared}. "
                f"Add [metric.{metric}] to tallystream.toml and restart the worker",
            )


_encoder: Final = msgspec.json.Encoder(order="deterministic")
_decoder: Final = msgspec.json.Decoder(Rules)


def publish(rules: Rules) -> bytes:
    """Return the form in which `tally:meta` holds the rules."""
    return _encoder.encode(rules)


def read(published: bytes) -> Rules:
    """Return the rules that `tally:meta` holds.

    Raises:
        ConfigurationError: they were written by a release that this one cannot follow.
    """
    try:
        return _decoder.decode(published)
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"the metrics that the worker published cannot be read ({error}): update this library to its release"
        ) from None
