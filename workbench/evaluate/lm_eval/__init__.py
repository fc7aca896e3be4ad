"""Standard tasks through EleutherAI's lm-eval (the extra lm-eval; no torch): our model is `workbench` there.

What lm-eval asks of a model are the three questions of workbench.evaluate.score; its tasks, metrics and standard errors
are its own. The group `waleffe` (the folder beside this file) holds the twelve tasks of Waleffe et al. 2024. Tasks
from local files need no network: give the folder of their YAML, which may `include` one of lm-eval's own.

    RUN/suite/1a2b3c4d/lm-eval/
        answers.jsonl      a row a request: what was answered is never asked again
        TASK.parquet       a row an item, as suites keep them (see `rows_of`)
        TASK.json          lm-eval's own results, configuration and version
        results.json       each task's scores, or why it failed

A task with examples in its prompt is TASK-5-shots there. Of lm-eval's own RULER, which asks transformers' AutoTokenizer
for lengths: it is given the run's tokenizer, unless that is a SentencePiece model (then --suite ruler). niah_single_1,
niah_multikey_2, niah_multikey_3, ruler_vt, ruler_cwe and ruler_fwe download nothing, but for nltk's punkt_tab, which is
looked for and done without; the other seven download essays or questions. ruler_vt and ruler_cwe never end where no
prompt is as short as they ask: at any length ruler_vt with bytes or a BPE of 1024, as its example has 500 tokens.
"""

try:
    import lm_eval
except ModuleNotFoundError as error:
    raise ValueError(
        f"standard tasks need the package lm-eval ({error.name} is missing); install the extra lm-eval: "
        "pip install 'architecture-workbench[lm-eval]'"
    ) from None
