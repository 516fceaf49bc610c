"""JSON of a given schema out of plain text; what the schema fixes is not generated, but jumped."""

import json

import weir as w

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2030},
        "field": {"enum": ["physics", "chemistry", "mathematics", "literature"]},
    },
    "required": ["name", "born", "field"],
    "additionalProperties": False,
}


@w.function
def extract(s, text):
    s += w.user(f"{text}\nGive this person's name, year of birth and field as JSON.")
    s += w.assistant(w.gen("person", max_tokens=64, json_schema=PERSON))


if __name__ == "__main__":
    w.set_default_backend(w.Runtime("smollm2-135m"))
    state = extract.run("Marie Curie, born in 1867 in Warsaw, studied radioactivity.")
    print(json.dumps(json.loads(state["person"]), indent=2))
