"""The recipes, as their owner tests them."""

from fastapi.testclient import TestClient


def test_words_are_counted(client: TestClient) -> None:
    assert client.get("/words", params={"text": "one two"}).json() == 2


def test_the_result_of_a_job_is_where_its_answer_says(client: TestClient) -> None:
    answer = client.post("/jobs", params={"text": "done"})
    assert answer.status_code == 202
    assert client.get(f"/jobs/{answer.json()}").json() == "DONE"


def test_a_note_refers_to_an_item_that_exists(client: TestClient) -> None:
    item = client.post("/api/items", json={"title": "an item"}).json()
    note = {"title": "a note", "item_id": item["id"]}
    assert client.post("/api/notes", json=note).status_code == 201
    assert client.delete(f"/api/items/{item['id']}").status_code == 409


def test_a_diary_is_of_one_user(client: TestClient) -> None:
    for user in ("visitor", "owner"):
        client.get("/oauth/huggingface/callback", params={"user": user})
        answer = client.post(f"/api/diary?text={user}", headers={"Origin": "http://testserver"})
        assert answer.status_code == 201
        assert client.get("/api/diary").json() == [user]
