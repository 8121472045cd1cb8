"""What each `--stage` trains, in one plain table: its data, model, saving and scores. All else is the same Trainer."""

from training import align, gfm, nodes, qa
from training.parts import Stage

STAGES = {
    "qa": Stage(qa.open_splits, qa.build, qa.dry_run, qa.check, qa.save, qa.predict),
    "align": Stage(align.open_pairs, align.build, align.dry_run, align.check, align.save, align.predict),
    "graph": Stage(nodes.open_batches, nodes.build, nodes.dry_run, nodes.check, nodes.save, nodes.predict, False),
    "gfm_pretrain": Stage(gfm.open_completions, gfm.build_pretraining, gfm.dry_run, gfm.check, gfm.save, gfm.complete),
    "gfm_finetune": Stage(gfm.open_questions, gfm.build_finetuning, gfm.dry_run, gfm.check, gfm.save, gfm.retrieve),
}
