"""How the policies for features are spelled, in `headway.yaml` and in a version's tag."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _word(value: Any) -> Any:
    """YAML and JSON read `null` as nothing at all; here it is one of the words."""
    return "null" if value is None else value


Action = Annotated[Literal["error", "null", "default", "last_good"] | None, BeforeValidator(_word)]


class FeatureRules(BaseModel):
    """What is done about a value that is missing, null, stale or out of reach; ages are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on_missing: Action = None
    on_null: Action = None
    on_stale: Action = None
    on_outage: Action = None
    default: bool | int | float | str | None = None
    max_age_seconds: Annotated[float, Field(gt=0)] | Literal["ttl"] | None = None
    last_good_seconds: float | None = Field(None, gt=0)


class FeaturePolicies(FeatureRules):
    """Rules for all features, for those of one view, and for one column; the narrower wins."""

    views: dict[str, FeatureRules] = {}
    columns: dict[str, FeatureRules] = {}

    def layer(self) -> dict[str, Any]:
        """Plain values, as `features.policies` takes them."""
        return self.model_dump(exclude_none=True)
