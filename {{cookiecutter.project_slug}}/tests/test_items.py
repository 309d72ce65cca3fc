"""Items, as a client sees them; delete this together with src/items/."""

import base64
import json
from datetime import datetime
from uuid import UUID, uuid4

from fastapi.testclient import TestClient

# well-formed, but with a UTC offset that no answer contains
FOREIGN_CURSOR = base64.urlsafe_b64encode(
    b"0001-01-01T00:00:00+23:59 00000000000000000000000000000000"
).decode()


def create(client: TestClient, title: str = "A title") -> dict[str, str]:
    answer = client.post("/api/items", json={"title": title, "description": "Some text"})
    assert answer.status_code == 201
    item: dict[str, str] = answer.json()
    return item


def test_a_created_item_can_be_read_where_location_says(client: TestClient) -> None:
    answer = client.post("/api/items", json={"title": 'It\'s "quoted": 100 % ünïcödé 🚀'})
    item = answer.json()

    assert client.get(answer.headers["Location"]).json() == item
    assert UUID(item["id"])
    assert item["title"] == 'It\'s "quoted": 100 % ünïcödé 🚀'
    assert item["description"] is None
    assert item["created_at"] == item["updated_at"]
    assert item["created_at"].endswith("Z")


def test_a_change_touches_only_what_was_sent(client: TestClient) -> None:
    item = create(client)

    changed = client.patch(f"/api/items/{item['id']}", json={"title": "Another"}).json()

    assert changed["title"] == "Another"
    assert changed["description"] == "Some text"
    assert datetime.fromisoformat(changed["updated_at"]) > datetime.fromisoformat(
        item["updated_at"]
    )
    cleared = client.patch(f"/api/items/{item['id']}", json={"description": None}).json()
    assert cleared["description"] is None
    assert cleared["title"] == "Another"


def test_a_deleted_item_is_gone(client: TestClient) -> None:
    item = create(client)

    assert client.delete(f"/api/items/{item['id']}").status_code == 204
    assert client.get(f"/api/items/{item['id']}").status_code == 404
    assert client.delete(f"/api/items/{item['id']}").status_code == 404


def test_pages_show_each_item_once_newest_first(client: TestClient) -> None:
    created = [create(client, str(number))["id"] for number in range(5)]

    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = client.get("/api/items", params={"limit": 2, "cursor": cursor}).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if len(seen) == 2:
            create(client, "created while somebody is turning pages")

    assert seen == created[::-1]


def test_a_bad_item_is_refused(client: TestClient) -> None:
    for body in (
        {},
        {"title": ""},
        {"title": "x" * 201},
        {"title": "a\0b"},
        {"title": "\ud800"},
        {"title": None},
        {"title": "x", "description": "x" * 2001},
        {"title": "x", "colour": "red"},
    ):
        answer = client.post("/api/items", content=json.dumps(body))
        assert answer.status_code == 422, body
        assert answer.json()["detail"][0]["loc"][0] == "body"
    assert client.get("/api/items").json()["items"] == []


def test_a_change_of_nothing_is_refused(client: TestClient) -> None:
    assert client.patch(f"/api/items/{create(client)['id']}", json={}).status_code == 422


def test_a_bad_page_is_refused(client: TestClient) -> None:
    foreign = f"cursor={FOREIGN_CURSOR}"
    for query in ("limit=0", "limit=101", "limit=x", "cursor=nonsense", foreign):
        assert client.get(f"/api/items?{query}").status_code == 422, query


def test_an_id_that_is_none_is_refused_and_an_unknown_one_is_not_found(client: TestClient) -> None:
    assert client.get("/api/items/42").status_code == 422
    assert client.get(f"/api/items/{uuid4()}").status_code == 404
    assert client.patch(f"/api/items/{uuid4()}", json={"title": "x"}).status_code == 404
