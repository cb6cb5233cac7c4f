"""Microsoft's emulator of Azure Blob Storage on loopback: Azurite, from npm."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environments import npm_folder_with
from tests.object_store import BUCKET, ObjectStore, running, wait_for_port
from tests.ports import free_port

AZURITE = "azurite@3.35.0"
ACCOUNT = "devstoreaccount1"
# Known to everyone: Azurite's documentation gives it, and it opens nothing else.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def azure_environment(port: int) -> dict[str, str]:
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": ACCOUNT,
        "AccountKey": KEY,
        "BlobEndpoint": f"http://127.0.0.1:{port}/{ACCOUNT}",
    }
    text = ";".join(f"{key}={value}" for key, value in parts.items())
    return {"AZURE_STORAGE_CONNECTION_STRING": text}


@contextlib.contextmanager
def running_azure_store(folder: Path, cache: pytest.Cache) -> Iterator[ObjectStore]:
    """Its data are in memory; skips where there is no adlfs, or no npm to install Azurite."""
    pytest.importorskip("adlfs", reason="pip install '.[az]'")
    program = npm_folder_with(cache, "azurite", AZURITE) / "node_modules/.bin/azurite-blob"
    port = free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--disableTelemetry"]
    command += ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    with running(command, folder) as process:
        wait_for_port(port, process, folder / "log")
        store = ObjectStore(scheme="az", port=port, environment_at=azure_environment)
        _create_container(store)
        yield store


def _create_container(store: ObjectStore) -> None:
    from azure.storage.blob import BlobServiceClient

    connection = store.environment["AZURE_STORAGE_CONNECTION_STRING"]
    with BlobServiceClient.from_connection_string(connection) as client:
        client.create_container(BUCKET)
