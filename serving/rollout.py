"""What is known of a version that one of several servers has before the others."""

import asyncio

from serving.answers import ModelDescription
from serving.async_client import AsyncClient
from serving.errors import NotFound

_ASKED = 10  # times: servers take turns
_APART_S = 0.05  # else a client that has just begun is connected with one of them alone


async def described(client: AsyncClient, model: str, version: str | int) -> ModelDescription:
    """Raises NotFound where none that was asked has it."""
    for _ in range(_ASKED - 1):
        try:
            return await client.get_model(model, version)
        except NotFound:
            await asyncio.sleep(_APART_S)
    return await client.get_model(model, version)
