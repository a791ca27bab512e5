"""What the S-DPO paper (https://huggingface.co/papers/2406.09215) prints for MovieLens-100k."""

# Tables 1 and 2: HR@1 and ValidRatio. The figures of the language models are all k of 95 records.
PAPER = {
    "GRU4Rec": (0.3750, 1.0),
    "Caser": (0.3861, 1.0),
    "SASRec": (0.3444, 1.0),
    "LLaMA2-7B, not tuned": (0.0421, 0.4421),
    "ChatRec": (0.2000, 0.9895),
    "MoRec": (0.2822, 1.0),
    "TALLRec": (0.3895, 0.9263),
    "LLaRA": (0.4737, 0.9684),
    "DPO, 1 negative": (0.4947, None),
    "DPO, 3 pairs": (0.4947, None),
    "S-DPO, K = 3": (0.5263, 0.9895),
}
