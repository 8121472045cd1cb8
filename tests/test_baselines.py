"""What the graph is compared with: questions alone, documents, text, learned tokens; by flag, and evaluated alike."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_finetune import trained
from tiny_world import SIZES, flags, write_dataset, write_model

import finetune
from data_processor.schema import read_jsonl, write_jsonl
from evaluation.__main__ import main as evaluation
from modeling_graphllm import GraphLLMForConditionalGeneration
from training.arguments import parse

SHORT = ("--max_steps", "2", "--do_predict", "True", "--max_new_tokens", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("world"))
    texts = [{"id": str(i), "text": f"thing{i} lies beside thing{(i + 1) % 20}."} for i in range(20)]
    write_jsonl(folder / "documents.jsonl", texts)
    return folder


def prompt_of(trainer) -> str:
    return trainer.processing_class.tokenizer.decode(trainer.train_dataset[0]["input_ids"])


@pytest.mark.parametrize(
    ("context", "holds"),
    [
        ("documents", {"graph": 0, "facts": False, "documents": True}),
        ("text", {"graph": 0, "facts": True, "documents": False}),
        ("graph", {"graph": 2, "facts": False, "documents": False}),
    ],
)
def test_a_context_shows_what_it_says_and_is_evaluated_as_it_was_trained(
    context, holds, language_model_folder, data, tmp_path
):
    argv = flags(language_model_folder, data, tmp_path / "out", *SHORT, "--context", context)
    with pytest.MonkeyPatch.context() as patch:
        output, _, trainer, _ = trained(patch, argv)
    text = prompt_of(trainer)
    assert text.count("<|graph|>") == holds["graph"]
    assert ("next_to" in text) == holds["facts"]
    assert ("lies beside" in text) == holds["documents"]
    assert "what is next to thing0?" in text
    assert answers(output, data, tmp_path / "again.jsonl") == (output / "predictions.jsonl").read_text()
    if context == "text":  # which can be taken away from a trained model in two ways
        alone = answers(output, data, tmp_path / "none.jsonl", "--context", "none")
        assert alone == answers(output, data, tmp_path / "ablated.jsonl", "--ablate", "question_only")


def answers(model: Path, data: Path, output: Path, *more: str) -> str:
    """What `generate` writes."""
    words = ["generate", "--model", str(model), "--data", str(data), "--output", str(output), "--device", "cpu"]
    evaluation([*words, "--max_new_tokens", "4", *more])
    return output.read_text()


def test_live_questions_are_refused_by_a_model_of_documents(data, tmp_path):
    from serving.pipeline import GraphQAPipeline

    model = write_model(tmp_path, {"context": "documents"})
    with pytest.raises(ValueError, match="was trained on documents.*evaluation generate"):
        GraphQAPipeline.from_pretrained(model, data)


def test_prompt_tuning_trains_nothing_but_its_tokens_and_reloads(language_model_folder, data, tmp_path):
    more = ("--prompt_tuning", "3", "--freeze_lm", "True", "--context", "text")
    with pytest.MonkeyPatch.context() as patch:
        argv = flags(language_model_folder, data, tmp_path / "out", *SHORT, *more)
        output, _, trainer, before = trained(patch, argv)
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {"graph_encoder.null_node", "graph_projector.layers.0.weight", "graph_projector.layers.0.bias"}
    state = load_file(output / "model.safetensors")
    assert sum(value.numel() for value in state.values()) == 1 + 2 * 3 * 16  # three tokens, 16 wide, and their scale
    text = prompt_of(trainer)
    assert text.count("<|graph|>") == 3 and "next_to" in text
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, trainer.model.eval()(**batch).logits, rtol=0, atol=1e-6)
    assert answers(output, data, tmp_path / "again.jsonl") == (output / "predictions.jsonl").read_text()


def test_a_model_is_asked_as_it_is(language_model_folder, data, tmp_path):
    asked = ("--do_train", "False", "--do_predict", "True", "--freeze_lm", "True", "--max_new_tokens", "4")
    output = tmp_path / "out"
    metrics = finetune.main(flags(language_model_folder, data, output, *asked, "--context", "text"))
    assert metrics["count"] == SIZES["test"]
    assert json.loads((output / "run.json").read_text())["arguments"]["context"] == "text"
    with pytest.raises(ValueError, match="leaves nothing to train.*--prompt_tuning N.*--do_train False"):
        parse(flags(language_model_folder, data, output, "--freeze_lm", "True", "--context", "text"))


def write_table(folder: Path) -> Path:
    rows = [f"{'skin' if i % 2 else 'hair'},Why does {i} itch?,since {i},{i % 3}" for i in range(24)]
    (folder / "table.csv").write_text("\n".join(["topic,Prompt,Response,fold", *rows]))
    return folder / "table.csv"


def test_a_table_trains_without_a_graph_keeps_its_test_rows_and_its_cache(language_model_folder, tmp_path, capsys):
    pytest.importorskip("datasets")
    table, output = write_table(tmp_path), tmp_path / "out"
    columns = ("--columns", "question=Prompt", "answer=Response", "type=topic")
    more = (*columns, "--test_rows", "fold=2", "--validation_size", "4", "--do_eval", "True")
    argv = flags(language_model_folder, table, output, *SHORT, *more)
    metrics = finetune.main(argv)
    rows = [row for _, row in read_jsonl(output / "predictions.jsonl")]
    assert [row["question"] for row in rows] == [f"Why does {i} itch?" for i in range(2, 24, 3)]
    assert {"eval_loss", "exact_match/skin", "exact_match/hair"} <= set(metrics)
    assert len(list((output / "_preprocessed").glob("*.safetensors"))) == 2
    again = tmp_path / "again.jsonl"
    assert answers(output, table, again) == (output / "predictions.jsonl").read_text()
    record = json.loads((output / "run.json").read_text())["arguments"]
    learned = answers(output, table, again, "--split", "train")  # neither tested nor validated on
    assert len(learned.splitlines()) == 24 - 8 - record["validation_size"] == 12
    with pytest.raises(SystemExit):
        answers(output, table, again, "--split", "tset")
    with pytest.raises(SystemExit):
        answers(output, table, again, "--append_retrieved", "5")
    assert "Leave --append_retrieved out" in capsys.readouterr().err
    other = table.rename(tmp_path / "other.csv")  # another file is asked whole
    assert len(answers(output, other, again).splitlines()) == 24
    other.rename(table)
    finetune.main([*argv, "--resume_from_checkpoint", "none", "--no_cache", "--output_dir", str(tmp_path / "two")])
    assert not (tmp_path / "two" / "_preprocessed").exists()
    with pytest.raises(ValueError, match="has no column 'Answer' for the answer. It has: topic, Prompt"):
        finetune.main([*argv, "--columns", "question=Prompt", "answer=Answer"])
    with pytest.raises(ValueError, match="The split 'test' of .* has zero rows. No row has fold=7"):
        finetune.main([*argv, "--test_rows", "fold=7"])


def test_predictions_of_other_questions_are_refused(data, tmp_path, capsys):
    write_jsonl(tmp_path / "p.jsonl", [{"id": "elsewhere-0", "prediction": "a", "answers": ["a"]}])
    with pytest.raises(SystemExit):
        evaluation(["score", "--predictions", str(tmp_path / "p.jsonl"), "--data", str(data), "--output",
                    str(tmp_path / "m.json")])
    said = capsys.readouterr().err
    assert re.search(r"not of the same questions as the references: 6 missing, 1 unknown; 'test-0' is missing", said)
