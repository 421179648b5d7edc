"""How an adapter is found: by a job's API type, or by the client that is at hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
from anthropic import Anthropic, AsyncAnthropic
from google import genai
from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI

from jobstore import InvalidArgument
from jobstore.providers import adapter_for, adapter_of


@pytest.mark.parametrize(
    ("api_type", "name", "provider"),
    [
        ("claude", "anthropic", "anthropic"),
        ("anthropic", "anthropic", "anthropic"),
        ("openai", "openai", "openai"),
        ("openai_chat", "openai_chat", "openai"),
        ("gemini", "gemini", "google"),
        ("google", "gemini", "google"),
    ],
)
def test_an_api_type_has_its_adapter(api_type: str, name: str, provider: str) -> None:
    adapter = adapter_for(api_type)
    assert (adapter.name, adapter.provider) == (name, provider)


def test_an_unknown_api_type_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidArgument, match="no adapter for 'abacus': use one of anthropic, claude"):
        adapter_for("abacus")


class MyAnthropic(AsyncAnthropic):
    """Somebody's own."""


async def test_a_client_is_known_by_its_class_or_by_what_that_descends_from() -> None:
    azure = AsyncAzureOpenAI(api_key="any", azure_endpoint="http://127.0.0.1:1", api_version="2026-01-01")
    for openai in (AsyncOpenAI(api_key="any"), azure):
        assert adapter_of(openai).name == "openai"
        await openai.close()
    for anthropic in (AsyncAnthropic(api_key="any"), MyAnthropic(api_key="any")):
        assert adapter_of(anthropic).name == "anthropic"
        await anthropic.close()
    gemini = genai.Client(api_key="any")
    assert adapter_of(gemini).name == adapter_of(gemini.aio).name == "gemini"
    await gemini.aio.aclose()
    gemini.close()


def test_other_clients_are_refused_also_those_that_would_block() -> None:
    for client in (Anthropic(api_key="any"), OpenAI(api_key="any")):
        with pytest.raises(InvalidArgument, match="must be an AsyncAnthropic"):
            adapter_of(client)
        client.close()
    with pytest.raises(InvalidArgument, match="not str"):
        adapter_of("a client")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_no_sdk_is_imported_before_its_adapter_is_asked_for() -> None:
    code = "import sys, jobstore.providers as p; p.adapter_for('openai'); print(*sys.modules)"
    loaded = set(run(code).split())
    assert "openai" in loaded
    assert not {"anthropic", "google.genai", "genai_prices"} & loaded


@pytest.mark.parametrize(
    ("missing", "statement", "advice"),
    [
        ("anthropic", "p.adapter_for('claude')", "pip install 'jobstore[anthropic]'"),
        ("openai", "p.adapter_for('openai')", "pip install 'jobstore[openai]'"),
        ("openai", "p.adapter_for('openai_chat')", "pip install 'jobstore[openai]'"),
        ("google.genai", "p.adapter_for('gemini')", "pip install 'jobstore[gemini]'"),
        ("genai_prices", "import jobstore.providers.cost", "pip install 'jobstore[cost]'"),
        ("opentelemetry", "import jobstore.workers.telemetry", "pip install 'jobstore[otel]'"),
    ],
)
def test_without_its_extra_the_import_says_what_to_install(missing: str, statement: str, advice: str) -> None:
    lines = ["import sys, jobstore.providers as p", f"sys.modules[{missing!r}] = None"]
    lines += ["try:", f"    {statement}", "except ImportError as error:", "    print(error)"]
    assert advice in run("\n".join(lines))
