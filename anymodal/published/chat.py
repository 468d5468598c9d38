"""Our chat template in the words of transformers: a Jinja template that gives the same ids."""

import json
from collections.abc import Callable, Sequence

from anymodal.tokens.config import ChatTemplate


def jinja_of(template: ChatTemplate, spell: Callable[[str], str], look: str) -> str:
    """Return the Jinja template of conversations; `spell` gives the token of a role name, `look` stands for a picture.

    >>> jinja_of(ChatTemplate(begin=("<bos>",)), lambda role: f"[{role}]", "[look]").split("{% for")[0]
    '{{ "[bos]" }}'
    """

    def say(entries: Sequence[str]) -> str:
        tokens = [spell(entry[1:-1]) if entry.startswith("<") and entry.endswith(">") else entry for entry in entries]
        return json.dumps("".join(tokens), ensure_ascii=False)

    def either(ours: str, theirs: str) -> str:
        return "{{ " + ours + " if answers else " + theirs + " }}"

    before, beside = either(say([template.before_answer]), '""'), say([template.beside_look])
    closed = either(say(template.assistant[1]), say(template.user[1]))
    if template.answered:
        said = "{{ " + say(template.answered) + " }}"
        closed = "{% if answers and not loop.last %}" + said + "{% else %}" + closed + "{% endif %}"
    lines = [
        "{{ " + say([*template.begin, *template.system]) + " }}",
        "{% for message in messages %}{% set answers = message['role'] == 'assistant' %}",
        either(say(template.assistant[0]), say(template.user[0])),
        "{% if message['content'] is string %}" + before + "{{ message['content'] }}{% else %}",
        "{% for part in message['content'] %}",
        "{% if loop.first and part['type'] == 'text' %}" + before + "{% endif %}",
        "{% if not loop.first and 'image' in (part['type'], loop.previtem['type']) %}{{ " + beside + " }}{% endif %}",
        "{{ " + json.dumps(look, ensure_ascii=False) + " if part['type'] == 'image' else part['text'] }}",
        "{% endfor %}{% endif %}",
        closed,
        "{% endfor %}{% if add_generation_prompt %}{{ " + say(template.assistant[0]) + " }}{% endif %}",
    ]
    return "".join(lines)
