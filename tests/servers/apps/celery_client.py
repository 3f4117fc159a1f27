"""Sends tasks, waits for their results and prints what they were, as JSON."""

from __future__ import annotations

import json

from celery_app import add, search

added = [add.delay(f"document {number}") for number in range(20)]
pids = {result.get(timeout=60)["pid"] for result in added}
found = [search.delay("leave") for _ in range(20)]
answers = [result.get(timeout=60) for result in found]
pids |= {answer["pid"] for answer in answers}
print(json.dumps({"pids": sorted(pids), "hits": sorted({answer["hits"] for answer in answers})}))
