"""The images API, through the client that its users have."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from http_helpers import CLASSES, SIDE, Served, wait_until, write_weights
from PIL import Image

from utils.serving.limits import Limits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    with Served(folder, aliases={"gpt-image-1": "tiny"}) as server:
        yield server


def client_of(server: Served, key: str = "none", **options) -> openai.OpenAI:
    options = {"max_retries": 0, "timeout": 60, **options}
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **options)


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def generate(client: openai.OpenAI, prompt: str = "cat", **question):
    """Few steps, with the extras as a user of the client passes them."""
    extra = {"num_inference_steps": 3, "seed": 5, **question.pop("extra_body", {})}
    return client.images.generate(**{"model": "tiny", **question}, prompt=prompt, extra_body=extra)


def picture(image) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def refused(client: openai.OpenAI, prompt: str = "cat", **question) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        generate(client, prompt, **question)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value


# --- Images ---


def test_images_come_as_base64(client):
    answer = generate(client, "a photograph of a Red Fox in snow", n=2)
    first, second = map(picture, answer.data)
    assert first.size == (SIDE, SIDE) and first.format == "PNG" and first.mode == "RGB"
    assert first.text["class"] == "red fox" and first.text["seed"] == "5"
    assert second.text["seed"] == "6"
    assert answer.size == f"{SIDE}x{SIDE}" and answer.output_format == "png"
    assert answer.data[0].revised_prompt == "red fox" and answer.data[0].url is None
    assert answer.usage.total_tokens == answer.usage.input_tokens_details.image_tokens == 0
    assert abs(answer.created - time.time()) < 60


def test_the_same_image_comes_by_an_address(client):
    image = generate(client, response_format="url").data[0]
    assert image.b64_json is None
    data = httpx.get(image.url).raise_for_status().content
    assert data == base64.b64decode(generate(client).data[0].b64_json)


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_formats(client, kind):
    answer = generate(client, output_format=kind)
    assert picture(answer.data[0]).format == kind.upper()
    assert answer.output_format == kind


def test_a_gif_shows_the_denoising(client):
    film = picture(
        generate(client, output_format="gif", extra_body={"num_inference_steps": 20}).data[0]
    )
    assert film.format == "GIF" and film.n_frames == 9
    few = picture(generate(client, output_format="gif", frame_count=2).data[0])
    assert few.n_frames == 2
    error = refused(client, output_format="gif", extra_body={"upscale": "twice"})
    assert error.body["param"] == "upscale"


def test_size_is_width_times_height(client):
    answer = generate(client, size="16x8")
    assert picture(answer.data[0]).size == (16, 8) and answer.size == "16x8"
    assert picture(generate(client, size="auto").data[0]).size == (SIDE, SIDE)


def test_an_upscaled_image_says_its_size(client):
    answer = generate(client, extra_body={"upscale": "twice"})
    assert picture(answer.data[0]).size == (2 * SIDE, 2 * SIDE) and answer.size == "16x16"


def test_extras_have_two_names(client):
    both = [{"num_inference_steps": 4, "guidance_scale": 2}, {"sample_steps": 4, "cfg_scale": 2}]
    one, other = (
        picture(
            client.images.generate(prompt="1", model="tiny", extra_body={"seed": 1, **extra}).data[
                0
            ]
        )
        for extra in both
    )
    assert one.text == other.text
    assert one.text["sample_steps"] == "4" and one.text["cfg_scale"] in ("2", "2.0")
    error = refused(client, extra_body={"num_inference_steps": 3, "sample_steps": 4})
    assert "sample_steps" in error.body["message"]


def test_parameters_of_other_models_change_nothing(client):
    plain = generate(client).data[0]
    answer = generate(
        client, quality="high", style="vivid", background="opaque", moderation="low", user="me"
    )
    assert picture(answer.data[0]).tobytes() == picture(plain).tobytes()


# --- Prompts ---


@pytest.mark.parametrize(
    ("prompt", "classes"),
    [
        ("DOG", ["dog"] * 3),
        ("2", ["red fox"] * 3),
        ("red_fox", ["red fox"] * 3),
        ("my dog!", ["dog"] * 3),
        ("", list(CLASSES)),
        ("Random", list(CLASSES)),
    ],
)
def test_a_prompt_names_a_class(client, prompt, classes):
    answer = generate(client, prompt, n=3)
    assert [image.revised_prompt for image in answer.data] == classes


@pytest.mark.parametrize("prompt", ["a house", "a cat and a dog", "category", "3", "-1", "dogs"])
def test_other_prompts_are_refused_with_the_classes(client, prompt):
    error = refused(client, prompt)
    assert error.body["param"] == "prompt" and error.body["code"] == "unknown_class"
    assert all(name in error.body["message"] for name in CLASSES)


def test_class_name_stands_above_the_prompt(client):
    answer = generate(client, "whatever", extra_body={"class_name": "dog"})
    assert answer.data[0].revised_prompt == "dog"
    one_of_each = generate(client, "whatever", extra_body={"class_name": -1})
    assert [image.revised_prompt for image in one_of_each.data] == list(CLASSES)


def test_a_model_without_classes_takes_no_prompt(client):
    assert picture(generate(client, "", model="plain").data[0]).mode == "L"
    assert "without classes" in refused(client, "cat", model="plain").body["message"]


# --- Models ---


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert names == ["plain", "tiny", "gpt-image-1"]
    assert client.models.retrieve("gpt-image-1").object == "model"
    for name in ("nothing", "twice", "../tiny"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_an_alias_is_the_weight(client):
    assert picture(generate(client, model="gpt-image-1").data[0]).text["weights"] == "tiny.pt"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        generate(client, model="dall-e-3")
    assert caught.value.body["param"] == "model" and caught.value.code == "model_not_found"
    assert "tiny" in caught.value.body["message"]


# --- Refusals ---


@pytest.mark.parametrize(
    ("question", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": "two"}, "n"),
        ({"size": "large"}, "size"),
        ({"size": "9x9"}, "size"),
        ({"size": "2048x8"}, "size"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"response_format": "file"}, "response_format"),
        ({"partial_images": 2}, "partial_images"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"stream": True, "output_format": "gif"}, "stream"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"frame_count": 4}, "frame_count"),
        ({"extra_body": {"num_inference_steps": 101}}, "num_inference_steps"),
        ({"extra_body": {"guidance_scale": -1}}, "guidance_scale"),
        ({"extra_body": {"sampler": "euler"}}, "sampler"),
        ({"extra_body": {"seed": 2**32}}, "seed"),
        ({"extra_body": {"class_name": "house"}}, "class_name"),
    ],
)
def test_a_bad_value_is_named(client, question, param):
    error = refused(client, **question)
    assert error.param == param and param in error.body["message"]


def test_states_that_are_more_than_memory_holds_are_refused(client):
    assert refused(client, output_format="gif", n=64, size="512x512").param == "n"


def test_an_endless_prompt_is_refused(client):
    assert refused(client, "cat " * 10_000).param == "prompt"


# --- Streams ---


def test_a_stream_shows_partial_images(client):
    question = {"stream": True, "partial_images": 3, "extra_body": {"num_inference_steps": 20}}
    events = list(generate(client, **question))
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 3,
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert all(picture(event).size == (SIDE, SIDE) for event in events)
    assert events[-1].usage.total_tokens == 0 and events[-1].size == f"{SIDE}x{SIDE}"
    whole = generate(client, extra_body={"num_inference_steps": 20}).data[0]
    assert events[-1].b64_json == whole.b64_json
    assert len({event.b64_json for event in events}) == 4


def test_a_stream_of_several_images_tells_them_apart(client):
    events = list(generate(client, n=2, stream=True))
    assert [event.image_index for event in events] == [0, 1]


def test_a_stream_is_refused_before_it_begins(client):
    assert refused(client, "house", stream=True).status_code == 400


def test_a_stream_whose_job_is_cancelled_ends_with_an_error(folder):
    with Served(folder, slow=0.03) as server, client_of(server) as client:
        stream = generate(client, stream=True, extra_body={"num_inference_steps": 100})
        wait_until(lambda: server.engine.jobs.under_way())
        server.engine.cancel(server.engine.jobs.under_way()[0])
        with pytest.raises(openai.APIError, match="cancelled"):
            list(stream)


# --- Clients that go, and servers that are busy ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_job_with_it(folder, stream):
    with Served(folder, slow=0.03) as server:
        question = {"model": "tiny", "prompt": "cat", "num_inference_steps": 100, "stream": stream}
        body = json.dumps(question)

        def ask() -> None:
            with httpx.stream(
                "POST",
                f"{server.url}/v1/images/generations",
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=0.5,
            ) as answer:
                answer.read()

        with pytest.raises(httpx.ReadTimeout):
            ask()
        wait_until(lambda: server.engine.statistics.ended["cancelled"] == 1)
        assert not server.engine.jobs.under_way()


@pytest.mark.slow
def test_a_full_queue_says_when_to_come_back(folder):
    with Served(folder, slow=0.02, limits=Limits(max_queue=1)) as server:
        with server.client() as plain:
            job = server.post_job(plain, sample_steps=100)
        with client_of(server) as impatient, pytest.raises(openai.RateLimitError) as caught:
            generate(impatient)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "queue_full"
        with client_of(server, max_retries=5) as patient:
            assert generate(patient).data  # it waits as long as it was told, then gets through
        assert job


@pytest.mark.slow
def test_a_job_that_was_late_is_not_tried_again(folder):
    with Served(folder, slow=0.03, limits=Limits(deadline=0.5)) as server:
        with client_of(server, max_retries=3) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                generate(client, extra_body={"num_inference_steps": 100})
        assert caught.value.status_code == 504
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert server.engine.statistics.submitted == 1


def test_a_cancelled_job_is_not_tried_again(folder):
    with Served(folder, slow=0.03) as server, client_of(server, max_retries=3) as client:
        threading.Thread(target=_cancel_first_job, args=(server,)).start()
        with pytest.raises(openai.ConflictError):
            generate(client, extra_body={"num_inference_steps": 100})
        assert server.engine.statistics.submitted == 1


def _cancel_first_job(server: Served) -> None:
    wait_until(lambda: server.engine.jobs.under_way())
    server.engine.cancel(server.engine.jobs.under_way()[0])


# --- Tokens ---


def test_a_token_is_the_api_key(folder):
    with Served(folder, tokens=("secret", "other"), hosts=("*",)) as server:
        with client_of(server, "wrong") as client, pytest.raises(openai.AuthenticationError):
            generate(client)
        with client_of(server, "secret") as client:
            url = generate(client, response_format="url").data[0].url
        # Whoever is given the address can look at this image, and at nothing else.
        assert httpx.get(url).status_code == 200
        address, _, key = url.partition("?")
        assert httpx.get(address).status_code == 401
        digit = "1" if key[4] == "0" else "0"
        assert httpx.get(f"{address}?key={digit}{key[5:]}").status_code == 401
        assert httpx.get(f"{address.removesuffix('/images/0')}?{key}").status_code == 401
        with server.client("other") as other:
            assert other.get(address).status_code == 404
