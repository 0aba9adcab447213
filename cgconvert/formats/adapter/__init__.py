"""LoRA adapters of peft: their configuration, and the merge into the model they were trained on."""
