"""llmtrain: pretrain a GPT or a BERT, and find out how much of it a task needs to be finetuned."""

__version__ = "0.1.0"
__all__ = ["__version__"]
