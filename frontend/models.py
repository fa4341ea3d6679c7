"""``/v1/models``: the one model this deployment serves."""

from __future__ import annotations

from http import HTTPStatus

from components.protocol import ErrorCode
from frontend.api_types import Model, ModelList
from frontend.errors import ApiError


def models(name: str, created: int, max_context: int) -> ModelList:
    """``created`` is when this frontend started, in unix seconds: when the weights were made nobody says.

    ``max_context`` 0: no processor has said it yet.
    """
    model = Model(id=name, created=created)
    if max_context:
        model.max_model_len = max_context
    return ModelList(data=[model])


def find(listed: ModelList, name: str) -> Model:
    """Raises ``ApiError`` 404."""
    for model in listed.data:
        if model.id == name:
            return model
    raise ApiError(
        HTTPStatus.NOT_FOUND, ErrorCode.MODEL_NOT_FOUND, f"The model `{name}` does not exist.", param="model"
    )
