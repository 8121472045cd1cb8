"""T5 and its kin through the same class: the loss is their own, every way of training works, LoRAG's recipes run."""

from pathlib import Path

import pytest
import torch
import yaml
from test_baselines import write_table
from test_finetune import losses, trained

from data_processor.schema import read_jsonl
from modeling_graphllm import GraphLLMForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
LINEAR = {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}  # of T5 1.1, as LoRAG names them
RECIPES = ("biot5", "biot5_lora", "biot5_qlora")


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    """A tiny random T5 1.1 whose tokenizer has no chat template."""
    from conftest import build_tokenizer
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    marks = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    shape = T5Config(vocab_size=261, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **marks, **sizes)
    T5ForConditionalGeneration(shape).save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def argv(recipe: str, model: Path, table: Path, output: Path, *more: str) -> list[str]:
    return [
        str(ROOT / f"configs/{recipe}.yaml"),
        *("--model_name_or_path", str(model), "--data_path", str(table), "--output_dir", str(output)),
        *("--columns", "question=Prompt", "answer=Response", "--test_size", "4", "--validation_size", "4"),
        *("--use_cpu", "True", "--bf16", "False", "--max_steps", "3", "--learning_rate", "1e-2"),
        *("--logging_strategy", "steps", "--logging_steps", "1", "--max_new_tokens", "4", "--disable_tqdm", "True"),
        *("--eval_strategy", "no", "--save_strategy", "no", *more),
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_lorags_recipes_train_answer_and_reload(recipe, t5, tmp_path):
    if recipe == "biot5_qlora":
        pytest.importorskip("bitsandbytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        output, metrics, trainer, before = trained(patch, argv(recipe, t5, write_table(tmp_path), tmp_path / "out"))
    assert losses(trainer)[-1] < losses(trainer)[0] and metrics["count"] == 4
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    if recipe == "biot5":
        assert any("encoder.block" in name for name in moved) and any("decoder.block" in name for name in moved)
    else:
        assert all("lora_" in name or "modules_to_save" in name for name in moved)
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in moved if "lora_" in name} == LINEAR
        layer = trainer.model.get_base_model().language_model.encoder.block[0].layer[0].SelfAttention.q
        assert (layer.base_layer.weight.dtype == torch.uint8) == (recipe == "biot5_qlora")
    rendered = trainer.processing_class.tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert rendered.startswith("### Question:\nWhy does") and rendered.endswith("itch?\n\n### Answer:\n<|end|>")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    if recipe == "biot5_qlora":
        return  # the base is loaded whole, not in four bits, unless it is asked for
    with torch.no_grad():
        expected, found = trainer.model.eval()(**batch), loaded.eval()(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)


def test_loss_and_answers_are_those_of_the_language_model_itself(t5, tmp_path):
    more = ("--chat_template", str(tmp_path / "none.jinja"))
    (tmp_path / "none.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        output, _, trainer, _ = trained(patch, argv("biot5", t5, write_table(tmp_path), tmp_path / "out", *more))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    model = trainer.model.eval()
    with torch.no_grad():
        plain = model.language_model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
        torch.testing.assert_close(model(**batch).loss, plain.loss, rtol=0, atol=1e-6)
        short = {name: batch[name] for name in ("input_ids", "attention_mask")}
        settings = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(**short, **settings), model.language_model.generate(**short, **settings))
    rows = [row["prediction"] for _, row in read_jsonl(output / "predictions.jsonl")]
    assert len(rows) == 4


def test_without_a_template_the_words_and_the_end_are_all_there_is(t5):
    from transformers import AutoTokenizer

    from processing_graphllm import GraphLLMProcessor
    from training.data import PLAIN_TEMPLATE

    tokenizer = AutoTokenizer.from_pretrained(t5)
    processor = GraphLLMProcessor(tokenizer, chat_template=PLAIN_TEMPLATE, is_encoder_decoder=True)
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
    encoded = processor.encode(turns)
    assert tokenizer.decode(encoded["input_ids"]) == "why?\n<|end|>"
    assert tokenizer.decode(encoded["labels"]) == "so<|end|>"
    assert processor.encode(turns[:1])["input_ids"] == encoded["input_ids"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_hold_lorags_settings(recipe):
    settings = yaml.safe_load((ROOT / f"configs/{recipe}.yaml").read_text())
    assert settings["model_name_or_path"] == "QizhiPei/biot5-base" and settings["model_max_length"] == 256
    assert settings["data_path"] == "Mreeb/Dermatology-Question-Answer-Dataset-For-Fine-Tuning"
    assert (settings.get("use_lora"), settings.get("q_lora")) == {
        "biot5": (False, None), "biot5_lora": (None, None), "biot5_qlora": (None, True),
    }[recipe]  # fmt: skip
    assert recipe == "biot5" or (settings["lora_r"], settings["lora_alpha"]) == (32, 32)
