"""What the schemas of all resources have in common."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""Text that both databases can store: PostgreSQL refuses NUL characters."""


def _require_one_field(schema: dict[str, Any]) -> None:
    schema["minProperties"] = 1
    # Generated clients would send these defaults, which are not values of the resource.
    for field in schema["properties"].values():
        field.pop("default", None)


class PartialUpdate(BaseModel):
    """A body that names the fields to change; `model_fields_set` holds their names.

    Each field needs a default, which is never stored.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=_require_one_field)

    @model_validator(mode="after")
    def changes_something(self) -> "PartialUpdate":
        """Refuse a body without a field."""
        if not self.model_fields_set:
            fields = " or ".join(type(self).model_fields)
            raise ValueError(f"there is nothing to change: give {fields}")
        return self
