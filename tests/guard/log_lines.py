"""A little generator of LiteLLM lines for tests: invented, seeded, nothing of a real log."""

import json
import random
from pathlib import Path
from typing import Any

START = 1_762_000_000.0  # 1 November 2025
_WORDS = """
river market engine window garden letter signal copper winter bridge candle forest paper morning
silver teacher answer village corner thunder harbour island lantern meadow orchard
""".split()  # noqa: SIM905


def text(seed: int, words: int = 40) -> str:
    """Words in an order of their own."""
    return " ".join(random.Random(seed).choices(_WORDS, k=words))


def line(number: int, **changes: Any) -> dict[str, Any]:
    """One StandardLoggingPayload; `changes` replace its fields."""
    return {
        "id": f"chatcmpl-{number}", "trace_id": f"trace-{number // 3}",
        "litellm_call_id": f"call-{number}", "call_type": "acompletion", "status": "success",
        "custom_llm_provider": "openai", "prompt_tokens": 50 + number % 7,
        "completion_tokens": 20 + number % 5, "startTime": START + 60.0 * number,
        "endTime": START + 60.0 * number + 2, "model": "openai/big-1", "model_group": "big",
        "response_cost": 0.002, "cache_hit": False, "end_user": "",
        "requester_ip_address": f"10.0.{number % 4}.{number % 9}", "user_agent": "OpenAI/3",
        "messages": [
            {"role": "system", "content": "You help."}, {"role": "user", "content": text(number)},
        ],
        "response": {
            "id": "r", "model": "big-1-0701", "choices": [{
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": f"Answer {number}."},
            }],
        },
        "model_parameters": {"temperature": 0.7, "max_tokens": 500},
        "metadata": {
            "user_api_key_hash": f"account-{number % 10}", "user_api_key_team_id": "team-1",
            "user_api_key_org_id": None,
            "user_api_key_auth_metadata": {
                "payment_fingerprint": f"card-{number % 3}", "device": "d1",
                "signup_time": "2025-10-01T00:00:00Z", "programme": "education",
            },
        },
        **changes,
    }  # fmt: skip


def write(path: Path, lines: list[Any]) -> Path:
    """Lines as JSON; bytes are written as they are."""
    held = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in lines]
    path.write_bytes(b"".join(row + b"\n" for row in held))
    return path


def write_log(path: Path, count: int, first: int = 0) -> Path:
    """A log of so many lines."""
    return write(path, [line(number) for number in range(first, first + count)])
