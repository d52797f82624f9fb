from tests.conftest import NEW_TICKET, Service


def test_a_ticket_that_was_created_is_in_the_list(service: Service) -> None:
    with service.client() as admin:
        made = admin.post("/api/v1/tickets", json=NEW_TICKET)
        assert made.status_code == 201
        listed = admin.get("/api/v1/tickets").json()
        assert made.json()["id"] in [one["id"] for one in listed["items"]]
