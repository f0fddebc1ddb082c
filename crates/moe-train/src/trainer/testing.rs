//! A model so small that a step takes milliseconds, and a text for it.

use moe_kernels::MoeBackend;
use moe_models::lm::Lm;

use crate::config::TrainConfig;
use crate::data::{TextData, Tokens, Vocab};

/// Two layers, the second with four experts, two per token; 12 steps of 2 x 2 sequences of 8 bytes.
pub(crate) fn config() -> TrainConfig {
    let mut config = TrainConfig::preset("tiny").expect("a preset of the program");
    config.model.vocab_size = 256;
    config.model.d_model = 16;
    config.model.num_layers = 2;
    config.model.num_heads = 2;
    config.model.num_kv_heads = None;
    config.model.head_dim = None;
    config.model.d_hidden = 24;
    config.model.max_seq_len = 8;
    config.model.moe.num_experts = 4;
    config.model.moe.top_k = 2;
    config.model.moe.d_hidden = 12;
    let optim = &mut config.optim;
    (optim.lr, optim.min_lr, optim.warmup_steps, optim.clip_norm) = (1e-2, 1e-3, 2, 1.0);
    let train = &mut config.train;
    (train.steps, train.batch_size, train.seq_len, train.grad_accumulation) = (12, 2, 8, 2);
    (train.log_every, train.valid_every, train.valid_batches) = (3, 4, 2);
    (train.checkpoint_every, train.keep_last) = (5, 3);
    config
}

/// A new model of [`config`].
pub(crate) fn model<B: MoeBackend>() -> Lm<B> {
    config().model.init(&Default::default())
}

/// `len` bytes of a text that repeats, so that there is something to learn.
pub(crate) fn text(len: usize) -> Tokens {
    Tokens::Bytes(b"the cat sat on the mat. ".iter().copied().cycle().take(len).collect())
}

/// 600 bytes to train on and 100 held out.
pub(crate) fn data() -> TextData {
    TextData { train: text(600), valid: text(100), vocab: Vocab::Bytes, description: "a test".to_string() }
}
