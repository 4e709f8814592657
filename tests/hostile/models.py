"""Models that are loaded: configurations, tokenizers, chat templates."""

from __future__ import annotations

from tests.hostile.making import DEEP, WEIGHT, Make, files, model, tensors, tokenizer
from tests.hostile.verbs import Case


def template(text: str) -> Make:
    return model(chat_template__jinja=text)


MODELS = [
    Case(
        "pickled weights",
        "eval --base",
        model(drop=("model.safetensors",), pytorch_model__bin=b"\x80\x04cos\nsystem\n."),
        "must hold *.safetensors weights, received none",
    ),
    Case(
        "code beside the weights",
        "eval --base",
        model(
            config={"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}},
            mine__py="open('/tmp/limbeck-owned', 'w')\n",
        ),
        "code of its own (auto_map), which limbeck never runs",
    ),
    Case(
        "a tokenizer of code",
        "eval --base",
        model(
            tokenizer_config__json='{"auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}, "tokenizer_class": "T"}',
            mine__py="open('/tmp/limbeck-owned', 'w')\n",
        ),
        "a tokenizer must name an end-of-sequence token, received none",
    ),
    Case(
        "an unknown architecture",
        "eval --base",
        model(config={"model_type": "mine"}),
        "must load as a transformers causal language model",
    ),
    Case("a billion layers", "eval --base", model(config={"num_hidden_layers": 10**9}), "more than these have rows"),
    Case(
        "a width of 10^12",
        "eval --base",
        model(config={"hidden_size": 10**12}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a head of 10^9",
        "eval --base",
        model(config={"head_dim": 10**9}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a vocabulary of 10^10",
        "eval --base",
        model(config={"vocab_size": 10**10}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a layer more than there are weights",
        "eval --base",
        model(config={"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6}),
        "must hold every weight of its config.json",
    ),
    Case(
        "sizes that are text",
        "eval --base",
        model(config={"hidden_size": "many"}),
        "must hold a tokenizer beside the model",
    ),
    Case(
        "heads of zero",
        "eval --base",
        model(config={"num_attention_heads": 0}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a quantisation that is not installed",
        "eval --base",
        model(config={"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        "must load as a transformers causal language model",
    ),
    Case(
        "rope settings of another kind",
        "eval --base",
        model(config={"rope_parameters": {"rope_type": "mine"}, "rope_scaling": {"rope_type": "mine"}}),
        "must load as a transformers causal language model",
    ),
    Case(
        "a damaged model file",
        "eval --base",
        model(model__safetensors=tensors(WEIGHT)),
        "must load as a transformers causal language model",
    ),
    Case(
        "a model config 100,000 deep",
        "eval --base",
        lambda folder: files(config__json=DEEP)(model()(folder)),
        "nesting too deep to read",
    ),
    Case(
        "a tokenizer that is no JSON",
        "eval --base",
        model(tokenizer__json="{no"),
        "must hold a tokenizer beside the model",
    ),
    Case(
        "a tokenizer 100,000 deep", "eval --base", model(tokenizer__json=DEEP), "must hold a tokenizer beside the model"
    ),
    Case(
        "a tokenizer without a model",
        "eval --base",
        model(tokenizer__json="{}"),
        "must hold a tokenizer beside the model",
    ),
    Case("token ids of 4 billion", "eval --base", tokenizer(lambda t: t["added_tokens"][0].update(id=2**32 - 1))),
    Case(
        "a splitting pattern that takes for ever",
        "eval --base",
        tokenizer(
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(\\d|\\d\\d)+="},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
        ),
    ),
    Case(
        "a template that reaches for the interpreter",
        "eval --base",
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "SecurityError",
    ),
    Case(
        "a template that calls what it should not",
        "eval --base",
        template("{{ cycler.__init__.__globals__.os.system('touch /tmp/limbeck-owned') }}"),
        "SecurityError",
    ),
    Case(
        "a template that loops without end",
        "eval --base",
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "takes more than 2 seconds",
    ),
    Case(
        "a template with a loop of 10^9",
        "eval --base",
        template("{% for a in range(1000000000) %}{% endfor %}"),
        "a chat template must render turns of user",
    ),
    Case("a template of a long text", "eval --base", template("{{ 'a' * 100000000000 }}"), "takes more memory or text"),
    Case(
        "a template that doubles its text",
        "eval --base",
        template(
            "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
        ),
        "takes more memory or text",
    ),
    Case(
        "a template of a tower of powers", "eval --base", template("{{ 9 ** (9 ** 9) }}"), "takes more than 2 seconds"
    ),
    Case(
        "a template that calls itself",
        "eval --base",
        template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "a chat template must render turns of user",
    ),
    Case(
        "a template that reads files",
        "eval --base",
        template("{% include '/etc/passwd' %}"),
        "a chat template must render turns of user",
    ),
    Case("a template that is none", "eval --base", template("{% for %}"), "a chat template must render turns of user"),
    Case(
        "an end of sequence that is a table",
        "eval --base",
        model(generation_config__json='{"eos_token_id": {"a": 1}}'),
        "generation_config.json: eos_token_id must be an id or a list of them, received {'a': 1}.",
    ),
    Case(
        "a longest prompt in words",
        "eval --base",
        model(
            tokenizer_config__json='{"tokenizer_class": "TokenizersBackend", "eos_token": "<|end|>", "model_max_length": "x"}'
        ),
        "must hold a tokenizer beside the model",
    ),
    Case(
        "an unknown token that is unknown itself",
        "eval --base",
        model(
            tokenizer_config__json='{"tokenizer_class": "TokenizersBackend", "eos_token": "<|end|>", "unk_token": ""}'
        ),
        "must hold a tokenizer beside the model",
    ),
]
