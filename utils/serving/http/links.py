"""Addresses of images on this server, for whoever is given them."""

from fastapi import Request

from utils.serving.http.security import KEY_PARAMETER, key_of
from utils.serving.jobs import Job
from utils.serving.services import Services


def image_url(job: Job, place: int, request: Request, services: Services) -> str:
    """The address of an image of a job that is kept, by the name that the client calls this server.

    Whoever fetches it may be somebody else, such as a browser that knows no token: where the server
    has tokens, the address holds a key for this one image.
    """
    path = f"/v1/jobs/{job.id}/images/{place}"
    address = f"{request.url.scheme}://{request.headers['host']}{path}"
    if not services.tokens:
        return address
    return f"{address}?{KEY_PARAMETER}={key_of(path, job.client.owner, services.secret)}"
