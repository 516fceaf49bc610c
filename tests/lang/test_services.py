"""Programs over HTTP: a Weir server, OpenAI's two endpoints, Anthropic's, and speculation."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

import weir
from tests.server.conftest import serving
from weir.errors import ConfigError, EngineDead, Overloaded
from weir.lang.backend.hosted import image_url
from weir.lang.speculate import Blank, match


class Kept:
    """Makes backends and shuts them down after the test."""

    def __init__(self):
        self.made = []

    def __getattr__(self, name):
        def make(*arguments, **named):
            self.made.append(getattr(weir, name)(*arguments, **named))
            return self.made[-1]

        return make


@pytest.fixture
def kept():
    kept = Kept()
    yield kept
    for backend in kept.made:
        backend.shutdown()


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def greedy(name, tokens, **settings):
    return weir.gen(name, max_tokens=tokens, temperature=0, **settings)


@weir.function
def talk(s, word):
    s += weir.system("be brief") + weir.user(word)
    s += weir.assistant(greedy("answer", 6))


def test_a_weir_server_gives_what_the_engine_gives(server, kept):
    backend = kept.RuntimeEndpoint(server.url)
    states = talk.run_batch([{"word": "hello"}, {"word": "bye"}], backend=backend)
    assert states[0].text() == "system: be brief\nuser: hello\nassistant: system\n"
    assert states[1]["answer"] == "system"
    meta = states[0].get_meta_info("answer")
    assert (meta["finish_reason"], meta["completion_tokens"]) == ("length", 6)


def test_a_weir_server_knows_which_program_and_branch_calls(server, kept):
    backend = kept.RuntimeEndpoint(server.url)

    @weir.function
    def program(s):
        s += "hello "
        with s.fork(2) as branches:
            branches += greedy("x", 2)
            (inner,) = branches[1].fork(1)
            inner += weir.select("y", ["a", "b"])
        s += greedy("z", 2)

    state = program.run(backend=backend)
    name = state.stream.prompt.program
    calls = [f.program for f in server.finished if f.program.startswith(name)]
    kinds = {f"{name}{branch}" for branch in ("", "/0", "/1", "/1/0")}
    assert set(calls) == kinds and calls.count(f"{name}/1/0") == 2  # one a choice
    found = httpx.get(f"{server.url}/programs", timeout=60).json()["programs"]
    assert found[0]["program"] == name and len({one["program"] for one in found}) == len(found)
    usage = found[0]
    assert (usage["calls"], usage["branches"], usage["failed"]) == (len(calls), 4, 0)
    assert usage["completion_tokens"] == 6 and usage["prompt_tokens"] > 6 * len("hello ")
    assert usage["cached_tokens"] >= 0 and usage["seconds"] > 0


def test_logprobs_come_from_every_endpoint(server, kept):
    for backend in (
        kept.RuntimeEndpoint(server.url),
        kept.OpenAI("fake", base_url=f"{server.url}/v1", is_chat_model=False),
        kept.OpenAI("fake", base_url=f"{server.url}/v1"),
    ):
        said = weir.user("hello") + weir.assistant(greedy("x", 3, logprobs=2))
        state = weir.function(lambda s, said=said: s.extend(said)).run(backend=backend)
        entries = state.get_meta_info("x")["logprobs"]
        assert "".join(one.token for one in entries) == state["x"] != ""
        assert [one.logprob for one in entries] == [-0.5] * 3
        assert all(one.rank == 1 and one.top[0].token == one.token for one in entries)
        assert all(len(one.top) == 2 and one.top[1].logprob < -0.5 for one in entries)


def test_choices_are_scored_by_a_server_and_by_a_service_that_echoes(server, kept):
    @weir.function
    def program(s):
        s += "pick " + weir.select("x", ["one", "three"])
        way = "unconditional_likelihood_normalized"
        s += weir.select("y", ["a", "bc"], choices_method=way)

    for backend in (
        kept.RuntimeEndpoint(server.url),
        kept.OpenAI("fake", base_url=f"{server.url}/v1", is_chat_model=False),
    ):
        state = program.run(backend=backend)
        told = state.get_meta_info("x")["logprobs"]
        assert told == {"one": [-0.5] * 3, "three": [-0.5] * 5}
        assert state.get_meta_info("y")["scores"] == {"a": 0.0, "bc": 0.0}


def test_completions_and_chat(server, kept):
    completions = kept.OpenAI("fake", base_url=f"{server.url}/v1", is_chat_model=False)
    assert talk.run("hello", backend=completions).text().endswith("ASSISTANT: SYSTEM\n")
    chat = kept.OpenAI("fake", base_url=f"{server.url}/v1")
    assert talk.run("hello", backend=chat)["answer"] == "system"
    with pytest.raises(weir.ProgramError, match="cannot go on with a turn that has begun"):
        weir.function(lambda s: s.assistant("a" + weir.gen("x"))).run(backend=chat)
    with pytest.raises(weir.ProgramError, match="chat service does not give"):
        weir.function(lambda s: s.assistant(weir.select("x", ["a"]))).run(backend=chat)


def test_errors_of_a_service_are_sentences(server, kept):
    gone = kept.OpenAI("other", base_url=f"{server.url}/v1", is_chat_model=False)
    with pytest.raises(weir.ProgramError, match=r"answered 404: .*other"):
        talk.run("hello", backend=gone)
    nobody = kept.OpenAI("fake", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(weir.ProgramError, match="Connect"):
        talk.run("hello", backend=nobody)
    with pytest.raises(EngineDead):
        weir.RuntimeEndpoint("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        weir.Anthropic("model")


class Scripted(BaseHTTPRequestHandler):
    """Answers POSTs with the next of `answers`: (status, headers, events); keeps the bodies."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, body))
        status, headers, events = self.server.answers(body)
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
        self.send_response(status)
        for name, value in ({"content-type": "text/event-stream"} | headers).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def scripted(answers):
    """A service whose `answers` are a function of the body."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.asked, server.answers = [], answers
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


STORY = "Harry Potter\nBorn: July 31\nHouse: Gryffindor\nPatron: stag\n"


def completion(body):
    """Goes on with STORY from where the prompt has come, as far as stops and limit allow; a token a
    word."""
    said = body["prompt"].split("Name: ", 1)[1]
    text = STORY[len(said) :] if STORY.startswith(said) else "something else\n"
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    ends = [text.find(stop) for stop in stops if stop in text]
    text = text[: min(ends)] if ends else text
    usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": len(text.split())}
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return 200, {}, [{"choices": [choice]}, {"choices": [], "usage": usage}]


def extraction(s):
    s += "Read about the wizard. " * 40 + "Name: "
    s += weir.gen("name", stop="\n") + "\nBorn: " + weir.gen("born", stop="\n")
    s += "\nHouse: " + weir.gen("house", stop="\n") + "\n"


def test_an_answer_that_breaks_off_is_an_error(kept):
    choice = {"index": 0, "text": "Ron", "finish_reason": None}
    with scripted(lambda body: (200, {}, [{"choices": [choice]}])) as service:
        backend = kept.OpenAI("m", base_url=service.url, is_chat_model=False)
        program = weir.function(lambda s: s.extend("Name: " + weir.gen("x")))
        with pytest.raises(weir.ProgramError, match="broke off"):
            program.run(backend=backend)


@pytest.mark.parametrize(
    ("path", "limit"), [("/v1", "max_tokens"), ("/api.openai.com/v1", "max_completion_tokens")]
)
def test_a_limit_has_the_name_that_a_chat_service_knows(kept, path, limit):
    with scripted(chat_answers(["ok"])) as service:
        url = service.url.removesuffix("/v1") + path
        talk.run("hi", backend=kept.OpenAI("m", base_url=url, api_key="k"))
        ((_, body),) = service.asked
        assert body[limit] == 6 and not body.keys() & {"max_tokens", "max_completion_tokens"} - {
            limit
        }


def test_text_outside_of_turns_would_be_lost_on_a_chat_service(kept):
    backend = kept.OpenAI("m", base_url="http://127.0.0.1:9/v1")
    program = weir.function(lambda s: s.extend("Be brief. " + weir.user("hi")))
    with pytest.raises(weir.ProgramError, match="turns alone"):
        program.run(backend=backend)


def test_speculation_makes_one_call_of_three(kept):
    plain, ahead = weir.function(extraction), weir.function(num_api_spec_tokens=64)(extraction)
    used = []
    for program in (plain, ahead):
        with scripted(completion) as service:
            backend = kept.OpenAI("m", base_url=service.url, is_chat_model=False)
            state = program.run(backend=backend)
            assert [state[name] for name in ("name", "born", "house")] == [
                "Harry Potter", "July 31", "Gryffindor"
            ]  # fmt: skip
            assert state.text().endswith("House: Gryffindor\n")
            used.append((backend.service.calls, backend.service.prompt_tokens))
    assert used[0][0] == 3 and used[1][0] == 1
    assert used[0][1] / used[1][1] > 2.5


def test_speculation_that_guessed_wrong_asks_again(kept):
    def program(s):
        s += "Name: " + weir.gen("name", stop="\n") + "\nSchool: " + weir.gen("school", stop="\n")

    with scripted(completion) as service:
        backend = kept.OpenAI("m", base_url=service.url, is_chat_model=False)
        state = weir.function(num_api_spec_tokens=64)(program).run(backend=backend)
        assert (state["name"], state["school"]) == ("Harry Potter", "something else")
        assert backend.service.calls == 2


def chat_answers(texts):
    left = iter(texts)

    def answer(body):
        delta = {"index": 0, "delta": {"content": next(left)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return 200, {}, [{"choices": [delta]}, {"choices": [], "usage": usage}]

    return answer


@weir.function(num_api_spec_tokens=64)
def form(s):
    s += weir.user("Fill in: Name: ..., Born: ...")
    with s.assistant():
        s += "Name: " + weir.gen("name", stop="\n") + "\nBorn: " + weir.gen("born", stop="\n")


def test_a_chat_turn_is_asked_for_once_and_taken_apart(kept):
    answers = ["I cannot.", "Name: Ron\nBorn: March 1"]
    with scripted(chat_answers(answers)) as service:
        backend = kept.OpenAI("m", base_url=service.url)
        state = form.run(backend=backend)
        assert (state["name"], state["born"], backend.service.calls) == ("Ron", "March 1", 2)
        assert state.messages()[-1]["content"] == "Name: Ron\nBorn: March 1"
        assert "stop" not in service.asked[0][1]
    with scripted(chat_answers(["no"] * 3)) as service:
        backend = kept.OpenAI("m", base_url=service.url)
        with pytest.raises(weir.ProgramError, match="3 answers did not have the form"):
            form.run(backend=backend)


def test_a_value_read_inside_a_speculated_turn_is_asked_for_then(kept):
    @weir.function(num_api_spec_tokens=16)
    def program(s):
        s += weir.user("say a word")
        with s.assistant():
            s += weir.gen("word", stop=".")
            s["twice"] = s["word"] * 2

    with scripted(chat_answers(["hey. You"])) as service:
        assert program.run(backend=kept.OpenAI("m", base_url=service.url))["twice"] == "heyhey"


def test_forms():
    form = ["Name: ", Blank(["\n"]), "\nAge: ", Blank([])]
    assert match(form, " Name: Bo\nAge: 3") == ["Bo", "3"]
    assert match(form, "Name: Bo, Age: 3") is None
    assert match(form, "Called Bo") is None
    assert match([Blank(["."]), " so"], "Yes. so") is None  # what ends the blank is not the text
    assert match([Blank([]), "!"], "Yes!") == ["Yes"]


def test_anthropic_goes_on_with_a_turn_that_has_begun(kept):
    def answer(body):
        return 200, {}, [
            {"type": "message_start", "message": {"usage": {"input_tokens": 7}}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": " Paris"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
             "usage": {"output_tokens": 2}},
        ]  # fmt: skip

    @weir.function
    def program(s):
        s += weir.system("be brief") + weir.user(weir.image(b"\x89PNG...") + "Capital of France?")
        s += weir.assistant("It is " + weir.gen("x", stop=".", max_tokens=9, temperature=0))

    with scripted(answer) as service:
        backend = kept.Anthropic("m", base_url=service.url, api_key="k")
        assert program.run(backend=backend).messages()[-1]["content"] == "It is Paris"
        ((path, body),) = service.asked
        assert path == "/v1/messages" and body["system"] == "be brief"
        assert body["messages"][-1] == {"role": "assistant", "content": "It is"}
        assert body["messages"][0]["content"][1]["source"]["media_type"] == "image/png"
        assert (body["stop_sequences"], body["max_tokens"]) == (["."], 9)
        assert (backend.service.prompt_tokens, backend.service.completion_tokens) == (7, 2)
        with pytest.raises(weir.ProgramError, match="takes no seed"):
            program.run(backend=backend, seed=1)


def test_a_busy_service_is_asked_again(kept):
    answers = [(503, {"retry-after": "0"}, []), chat_answers(["ok"])({})]
    left = iter(answers)
    with scripted(lambda body: next(left)) as service:
        backend = kept.OpenAI("m", base_url=service.url)
        assert talk.run("hi", backend=backend)["answer"] == "ok"
    with scripted(lambda body: (429, {"retry-after": "1"}, [])) as service:
        backend = kept.OpenAI("m", base_url=service.url, timeout=0.9)
        with pytest.raises(weir.ProgramError) as caught:
            talk.run("hi", backend=backend)
        assert isinstance(caught.value.__cause__, Overloaded)


def test_a_server_that_starts_is_waited_for_however_often_it_says_so(kept, caplog):
    starting = "The engine is starting; try again in 5 s."
    left = iter([(503, {"retry-after": "0"}, [starting])] * 7 + [chat_answers(["ok"])({})])
    with scripted(lambda body: next(left)) as service:
        backend = kept.OpenAI("m", base_url=service.url)
        assert talk.run("hi", backend=backend)["answer"] == "ok"
    (line,) = caplog.messages
    assert starting in line and line.endswith("Waiting up to 600 s.")


def test_a_server_that_is_dead_is_not(kept):
    with serving() as running:
        backend = kept.RuntimeEndpoint(running.url)
        running.client._health = "dead: no GPU"
        with pytest.raises(weir.ProgramError, match="dead: no GPU; restart it"):
            talk.run("hi", backend=backend)


def test_images_are_refused_where_nobody_sees(server, kept):
    backend = kept.OpenAI("fake", base_url=f"{server.url}/v1", is_chat_model=False)
    with pytest.raises(weir.ProgramError, match="reads text only"):
        weir.function(lambda s: s.extend(weir.image("x.png") + weir.gen("x"))).run(backend=backend)
    assert image_url("https://x/y.png") == "https://x/y.png"
    assert image_url(b"RIFF....WEBPVP8 ").startswith("data:image/webp;base64,")
    assert image_url(b"\xff\xd8").startswith("data:image/jpeg;base64,")


def test_a_gen_with_a_shape_of_its_own_is_asked_for_apart(kept):
    """What it wrote beyond its end is the shape's, not the model's next words."""

    def answer(body):
        text = "42 " if "structured_outputs" in body else "Ron\nHouse: Gryffindor\n"
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return 200, {}, [{"choices": [choice]}]

    @weir.function(num_api_spec_tokens=16)
    def program(s):
        s += "Age: " + weir.gen("age", dtype=int) + weir.gen("name", stop="\n") + "\nHouse: "
        s += weir.gen("house", stop="\n")

    with scripted(answer) as service:
        backend = kept.OpenAI("m", base_url=service.url, is_chat_model=False)
        state = program.run(backend=backend)
        assert [state[name] for name in ("age", "name", "house")] == ["42 ", "Ron", "Gryffindor"]
        assert backend.service.calls == 2
        backend = kept.OpenAI("m", base_url=service.url)
        chat = weir.function(num_api_spec_tokens=8)(
            lambda s: s.extend(weir.user("a") + weir.assistant(weir.gen("x", n=2)))
        )
        with pytest.raises(weir.ProgramError, match="has no n"):
            chat.run(backend=backend)


def test_branches_speculate_beside_each_other(kept):
    def program(s):
        s += "Read about the wizard.\n"
        branches = s.fork(3)
        for branch in branches:
            branch += "Name: " + weir.gen("name", stop="\n") + "\nBorn: "
        for branch in branches:
            branch += weir.gen("born", stop="\n")
        branches.join()

    with scripted(completion) as service:
        backend = kept.OpenAI("m", base_url=service.url, is_chat_model=False)
        state = weir.function(num_api_spec_tokens=64)(program).run(backend=backend)
        assert (state["name"], state["born"]) == (["Harry Potter"] * 3, ["July 31"] * 3)
        assert backend.service.calls == 3
