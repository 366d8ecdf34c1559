"""Scores of a real small model: log-likelihoods against float64, choices, generation, and what is left behind."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from harness_cases import adapted, load_stories, story_config

from tailora.config_harness import HarnessConfig
from tailora.errors import ConfigError
from tailora.harness import check_fit, check_harness, measure

TARGETS = ["q_proj", "v_proj", "down_proj", "embed_tokens", "lm_head"]


def questions(data_root, count):
    """The first questions of ARC-Easy, taken apart without regular expressions."""
    rows = json.loads((data_root / "commonsense" / "ARC-Easy" / "test.json").read_text(encoding="utf-8"))[:count]
    for row in rows:
        question, rest, names = row["instruction"].split("\n\n")
        question = question.removeprefix("Please choose the correct answer to the question: ")
        choices, names = [], names.removeprefix("Answer format: ").split("/")
        for number in range(len(names), 0, -1):
            rest, _, choice = rest.rpartition(f"Answer{number}: ")
            choices.insert(0, choice.strip())
        yield question, choices, names.index(row["answer"])


@torch.no_grad()
def loglikelihood(model, tokenizer, prompt, answer):
    """The sum of the answer's log-probabilities in float64, one sequence at a time."""
    whole, start = tokenizer(prompt + answer)["input_ids"], len(tokenizer(prompt)["input_ids"])
    logs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(float(logs[place - 1, whole[place]]) for place in range(start, len(whole)))


@pytest.fixture(scope="module")
def choice_scores(stories260k, data_root):
    """ARC-Easy with an adapted model, embedding and tied head included."""
    model, tokenizer = load_stories(stories260k)
    model = adapted(model, TARGETS).train()
    config = story_config(stories260k, data_root, "arc_easy_file", limit=10, primary="arc_easy_file/acc_norm")
    check_harness(config)
    check_fit(config, model, tokenizer)
    return config, model, tokenizer, measure(config, model, tokenizer)


def test_loglikelihoods_and_choices_agree_with_float64(choice_scores, data_root):
    _, model, tokenizer, found = choice_scores
    exact = copy.deepcopy(model).double().eval()
    best, normed, expected = [], [], list(questions(data_root, 10))
    for row, record, (question, choices, gold) in zip(found.rows, found.records, expected, strict=True):
        sums = [loglikelihood(exact, tokenizer, f"Question: {question}\nAnswer:", f" {choice}") for choice in choices]
        np.testing.assert_allclose(row["scores"], sums, rtol=1e-5)
        means = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
        picked, fair = int(np.argmax(sums)), int(np.argmax(means))
        best.append(picked == gold)
        normed.append(fair == gold)
        assert (row["label"], row["prediction"]) == (choices[gold], choices[picked])
        assert row["metrics"] == {"acc": best[-1], "acc_norm": normed[-1]}
        assert (record["label"], record["prediction"]) == (choices[gold], choices[fair])
        assert record["correct"] is normed[-1]
        assert record["text"].startswith("Question: ")
    assert found.scores == {"arc_easy_file/acc": np.mean(best), "arc_easy_file/acc_norm": np.mean(normed)}
    assert 0 < sum(normed) < 10, "a constant would pass"
    assert found.primary == "arc_easy_file/acc_norm"
    assert found.facts["tasks"]["arc_easy_file"] == {"version": 1.0, "num_fewshot": 0, "examples": 10}


def test_nothing_is_left_behind(choice_scores, capfd):
    config, model, tokenizer, found = choice_scores
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    padding, attributes = tokenizer.pad_token_id, set(vars(model))
    state, python, numpy = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    capfd.readouterr()
    seen = []
    again = measure(config, model, tokenizer, progress=lambda *told: seen.append(told))
    assert capfd.readouterr() == ("", "")
    assert (again.scores, again.rows) == (found.scores, found.rows)
    assert seen[-1][0] == "harness"
    assert 0 < seen[-1][1] <= seen[-1][2] == sum(len(row["scores"]) for row in found.rows)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert (tokenizer.pad_token_id, set(vars(model))) == (padding, attributes)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert str(np.random.get_state()) == numpy  # noqa: NPY002


def test_batch_size_does_not_matter(choice_scores, stories260k, data_root):
    config, model, tokenizer, found = choice_scores
    section = config.harness.model_copy(update={"batch_size": 3})
    again = measure(config.model_copy(update={"harness": section}), model, tokenizer)
    for one, other in zip(found.rows, again.rows, strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-5)


def test_gsm8k_is_written_and_scored_honestly(stories260k, data_root):
    """A model that knows stories only solves nothing, and what it wrote is there to read."""
    model, tokenizer = load_stories(stories260k)
    config = story_config(stories260k, data_root, "gsm8k_file", limit=3, num_fewshot=1, max_gen_toks=24)
    check_fit(config, model, tokenizer)
    found = measure(config, model, tokenizer)
    assert found.scores == {
        "gsm8k_file/exact_match,strict-match": 0.0,
        "gsm8k_file/exact_match,flexible-extract": 0.0,
    }
    assert (found.primary, found.records) == ("", ())
    assert len(found.rows) == 2 * 3
    for row in found.rows:
        assert row["response"].strip()
        assert "#### " in row["label"]
        assert "Answer:" in row["text"] or row["text"].endswith("…")
    assert found.facts["tasks"]["gsm8k_file"]["num_fewshot"] == 1


LEARNED = [("Two and nine?", "#### 11"), ("Ten less four?", "#### 6"), ("Half of 90?", "It is 45.")]


def overfitted(stories, rows):
    """Train the real small model until it gives these answers."""
    model, tokenizer = load_stories(stories)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batches = []
    for question, answer in rows:
        prompt = f"Question: {question}\nAnswer:"
        ids, start = tokenizer(f"{prompt} {answer}\n\n")["input_ids"], len(tokenizer(prompt)["input_ids"])
        batches.append((torch.tensor([ids]), torch.tensor([[-100] * start + ids[start:]])))
    for _ in range(40):
        loss = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in batches]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, tokenizer


def test_strict_and_flexible_answers_of_a_model_that_knows_them(stories260k, tmp_path):
    """The whole way from the prompt to the score: what ends in #### counts strictly, any last number flexibly."""
    (tmp_path / "gsm8k").mkdir()
    targets = ["#### 11", "#### 7", "#### 45"]  # the second is not what the model learned
    lines = [
        json.dumps({"question": question, "answer": f"By counting.\n{target}"})
        for (question, _), target in zip(LEARNED, targets, strict=True)
    ]
    for split in ("train", "test"):
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model, tokenizer = overfitted(stories260k, LEARNED)
    changes = {"num_fewshot": 0, "max_gen_toks": 32, "primary": "gsm8k_file/exact_match,strict-match"}
    found = measure(story_config(stories260k, tmp_path, "gsm8k_file", **changes), model, tokenizer)
    assert [(row["prediction"], row["correct"]) for row in found.records] == [
        ("11", True),
        ("6", False),
        ("[invalid]", False),
    ]
    flexible = [row for row in found.rows if row["filter"] == "flexible-extract"]
    assert [(row["prediction"], row["metrics"]["exact_match"]) for row in flexible] == [
        ("11", 1.0),
        ("6", 0.0),
        ("45.", 1.0),
    ]
    assert found.scores["gsm8k_file/exact_match,strict-match"] == pytest.approx(1 / 3)
    assert found.scores["gsm8k_file/exact_match,flexible-extract"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "written", "strict", "flexible"),
    [
        ("#### 1,234", "So 1234.\n#### 1,234", 1, 1),
        ("#### 1234", "#### $1,234", 0, 1),
        ("#### -7", "#### -7", 1, 1),
        ("#### 18", "16 - 3 is 13, and 5 more are 18", 0, 1),
        ("#### 18", "#### 18 and not 20", 1, 0),
        ("#### 18", "I do not know", 0, 0),
        ("#### 18", "#### 180", 0, 0),
        ("#### 18", "", 0, 0),
    ],
)
def test_extraction(stories260k, data_root, answer, written, strict, flexible):
    """lm-eval's own filters and metric on given texts."""
    from lm_eval.api.instance import Instance

    from tailora.harness.quiet import quietly
    from tailora.harness.tasks import loaded

    section = HarnessConfig.model_validate(story_config(stories260k, data_root, "gsm8k_file").harness)
    with quietly(), loaded(section) as ready:
        task = ready.tasks["gsm8k_file"]
    document = {"question": "?", "answer": answer}
    instance = Instance("generate_until", document, ("?", {}), 0, resps=[written])
    task._instances = [instance]
    task.apply_filters()
    results = [task.process_results(document, [instance.filtered_resps[entry.name]]) for entry in task._filters]
    assert [result["exact_match"] for result in results] == [strict, flexible]


def test_what_does_not_fit_the_model(stories260k, data_root):
    model, tokenizer = load_stories(stories260k)
    config = story_config(stories260k, data_root, "gsm8k_file", max_gen_toks=512)
    with pytest.raises(ConfigError, match="answers of up to 512 tokens, but .* has room for 512 .*max_gen_toks"):
        check_fit(config, model, tokenizer)
    config = story_config(stories260k, data_root, "gsm8k_file", apply_chat_template=True)
    with pytest.raises(ConfigError, match="has no chat template; leave it out"):
        check_fit(config, model, tokenizer)
    config = story_config(stories260k, data_root, "arc_easy_file", limit=4, apply_chat_template=True)
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<answer>"
    tokenizer.chat_template = template
    chatty = measure(config, model, tokenizer)
    plain = measure(story_config(stories260k, data_root, "arc_easy_file", limit=4), model, tokenizer)
    assert [row["scores"] for row in chatty.rows] != [row["scores"] for row in plain.rows]
