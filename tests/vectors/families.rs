//! The families: what they refuse, where their tokenizers cut long texts, and that their golden vectors have teeth.

use super::{Golden, copy, cosine, embed, golden, load, piece, spoilt};
use embeddings::engine::{LoadOptions, Model, TokenizeError, pooling};
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};
use tokenizers::Tokenizer;

/// A tokenizer of each kind, in a model of so many places that texts of many windows are not cut to its limit.
struct Kind {
    name: &'static str,
    ours: Arc<Model>,
    whole: Tokenizer,
}

const PLACES: &str = "60000";

static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let kinds = ["roberta", "xlm-roberta", "modernbert", "qwen3", "gemma3", "mpnet"];
    kinds.map(kind).into_iter().collect()
});

/// The tokenizer of one model in another with rotary positions, which has any number of places.
fn kind(name: &'static str) -> Kind {
    let folder = copy("gemma3");
    let replace = |file: &str, old: &str, new: &str| {
        let path = folder.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{file} has no {old}");
        std::fs::write(path, text.replace(old, new)).unwrap();
    };
    let (places, length) = ("\"max_position_embeddings\": ", "\"model_max_length\": ");
    replace(
        "config.json",
        &format!("{places}512"),
        &format!("{places}{PLACES}"),
    );
    replace(
        "tokenizer_config.json",
        &format!("{length}300"),
        &format!("{length}{PLACES}"),
    );
    let file = golden().join(name).join("tokenizer.json");
    std::fs::copy(&file, folder.path().join("tokenizer.json")).unwrap();
    let mut whole = Tokenizer::from_file(file).unwrap();
    whole.with_padding(None);
    whole.with_truncation(None).unwrap();
    Kind {
        name,
        ours: load(folder.path()),
        whole,
    }
}

impl Kind {
    fn check(&self, text: &str) -> Result<(), TestCaseError> {
        let ours = self.ours.tokenize(text, None, true).unwrap();
        let whole = self.whole.encode_fast(text, true).unwrap();
        prop_assert!(
            !ours.truncated,
            "{}: the text is too long for this test",
            self.name
        );
        prop_assert_eq!(&ours.ids[..], whole.get_ids(), "{}", self.name);
        Ok(())
    }
}

/// Texts in which windows end: words and blanks beside all that is odd.
fn long_piece() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        "<mask>",
        " <mask> ",
        "a <mask>",
        "<s>",
        "</s> b",
        "<|im_end|>",
        "<|endoftext|> x",
        "[MASK]",
        "<bos>",
        "a  b",
        "a\tb",
        "a\nb",
        "don't",
        "it's so",
        "▁",
        "a▁b",
        "▁▁ x",
        "é e",
        "e\u{301} a",
        "ﬁ x",
        "中 文",
        "a\u{a0}b",
        "1 2",
        "x 1",
        ". A",
    ]);
    prop_oneof![
        4 => (prop::sample::select(vec!["word ", "a b ", "The Way ", "house, ", "e\u{301} ", "x\u{200b} "]), 1usize..3000)
            .prop_map(|(text, n)| text.repeat(n)),
        4 => odd.prop_map(str::to_owned),
        3 => piece(),
        2 => "[a-zA-Z ]{1,200}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    // Goal: tokens made window by window are those of the whole text, for every kind of tokenizer. Method: texts
    // of many windows, with whatever could join two words at a window's end, against the library on the whole.
    #[test]
    fn windows_change_no_token_of_any_kind(pieces in prop::collection::vec(long_piece(), 1..20)) {
        let mut text = pieces.concat();
        // Within the places of the model, even where each byte is a token.
        let most = (0..=50_000.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(most.unwrap_or(0));
        for kind in KINDS.iter() {
            kind.check(&text)?;
        }
    }
}

// Goal: a text of megabytes costs no more than its beginning, also where no place to cut is found. Method: runs
// of one thing, at the models' own limits, against the library on a part that is many times what is kept.
#[test]
fn megabytes_of_one_thing_are_no_burden_to_any_kind() {
    for name in ["roberta", "xlm-roberta", "modernbert", "qwen3", "gemma3"] {
        let model = load(&golden().join(name));
        let mut whole = Tokenizer::from_file(golden().join(name).join("tokenizer.json")).unwrap();
        whole.with_padding(None);
        whole.with_truncation(None).unwrap();
        for thing in ["x", "the ", " ", "\n", "-", "北", "a\u{301}", "é ", "1"] {
            let long = model
                .tokenize(&thing.repeat(4_000_000 / thing.len()), None, true)
                .unwrap();
            let short = whole
                .encode_fast(thing.repeat(100_000 / thing.len()), true)
                .unwrap();
            let kept = long.ids.len().min(short.len()) - 2;
            assert_eq!(long.ids[..kept], short.get_ids()[..kept], "{name} {thing:?}");
        }
    }
}

/// The largest distance of a vector from the reference's, in a copy of the model with one setting changed.
fn apart(name: &str, file: &str, old: &str, new: &str) -> f64 {
    let folder = copy(name);
    let path = folder.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(old), "{name}/{file} has no {old}");
    std::fs::write(&path, text.replace(old, new)).unwrap();
    let model = load(folder.path());
    let lines = Golden::read(&golden().join(name).join("golden.jsonl"));
    let distance = |line: &Golden| 1.0 - cosine(&embed(&model, &[&line.sequence(&model)])[0], &line.vector());
    lines.iter().map(distance).fold(0.0, f64::max)
}

// Goal: golden vectors would show a setting that is read wrong or not at all. Method: the setting is changed a
// little; some vector must then leave its place by a hundred times what the comparison allows.
#[test]
fn a_setting_read_wrong_would_show() {
    for (name, old, new) in [
        ("roberta", "\"pad_token_id\": 1", "\"pad_token_id\": 0"),
        ("gelu-new", "\"layer_norm_eps\": 0.05", "\"layer_norm_eps\": 0.01"),
        ("distilbert-relu", "\"relu\"", "\"gelu\""),
        ("modernbert", "\"local_attention\": 16", "\"local_attention\": 18"),
        ("modernbert", "160000", "10000"),
        (
            "modernbert",
            "\"rope_theta\": 10000.0",
            "\"rope_theta\": 160000.0",
        ),
        (
            "modernbert",
            "\"full_attention\",\n    \"sliding_attention\",",
            "\"sliding_attention\",\n    \"full_attention\",",
        ),
        ("modernbert-bias", "\"norm_bias\": true", "\"norm_bias\": false"),
        (
            "modernbert-bias",
            "\"attention_bias\": true",
            "\"attention_bias\": false",
        ),
        ("modernbert-bias", "\"mlp_bias\": true", "\"mlp_bias\": false"),
        ("modernbert-bias", "\"norm_eps\": 0.05", "\"norm_eps\": 0.01"),
        ("nomic", "\"rope_theta\": 1000.0", "\"rope_theta\": 10000.0"),
        ("nomic", "\"silu\"", "\"gelu\""),
        (
            "nomic-hub",
            "\"layer_norm_eps\": 0.05",
            "\"layer_norm_eps\": 0.01",
        ),
        ("gte", "\"rope_theta\": 160000.0", "\"rope_theta\": 20000.0"),
        ("gte-hub", "\"layer_norm_eps\": 0.05", "\"layer_norm_eps\": 0.01"),
        ("qwen3", "\"rope_theta\": 1000000.0", "\"rope_theta\": 10000.0"),
        ("qwen3", "\"silu\"", "\"gelu\""),
        (
            "qwen3-bias",
            "\"attention_bias\": true",
            "\"attention_bias\": false",
        ),
        ("qwen3-bias", "\"rms_norm_eps\": 0.05", "\"rms_norm_eps\": 0.01"),
        (
            "gemma3",
            "\"use_bidirectional_attention\": true",
            "\"use_bidirectional_attention\": false",
        ),
        ("gemma3", "\"sliding_window\": 24", "\"sliding_window\": 26"),
        (
            "gemma3",
            "\"query_pre_attn_scalar\": 16",
            "\"query_pre_attn_scalar\": 20",
        ),
        ("gemma3", "\"rope_theta\": 10000.0", "\"rope_theta\": 1000000.0"),
        ("gemma3-causal", "\"sliding_window\": 9", "\"sliding_window\": 10"),
        (
            "gemma3-causal",
            "\"rms_norm_eps\": 0.05",
            "\"rms_norm_eps\": 0.01",
        ),
    ] {
        let apart = apart(name, "config.json", old, new);
        assert!(
            apart > 1e-4,
            "{name}: {new} moves no vector by more than {apart:.1e}"
        );
    }
}

/// What two ways to say the same may differ by from the reference, on any kernel.
const SAME: f64 = 1e-7;

// The configurations that were first published have other keys for the same things.
#[test]
fn old_keys_say_the_same_as_new_ones() {
    let rope = "\"rope_parameters\": {\n    \"rope_theta\": 1000.0,\n    \"rope_type\": \"default\"\n  }";
    assert!(apart("nomic", "config.json", rope, "\"rotary_emb_base\": 1000.0") < SAME);
    for (new, old) in [
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("intermediate_size", "n_inner"),
        ("layer_norm_eps", "layer_norm_epsilon"),
        ("max_position_embeddings", "n_positions"),
    ] {
        assert!(
            apart(
                "nomic-hub",
                "config.json",
                &format!("\"{new}\""),
                &format!("\"{old}\"")
            ) < SAME,
            "{old}"
        );
    }
    let silu = "\"hidden_act\": \"silu\"";
    assert!(
        apart(
            "nomic-hub",
            "config.json",
            silu,
            "\"activation_function\": \"swiglu\""
        ) < SAME
    );
    let rope = "\"rope_parameters\": {\n    \"rope_theta\": 1000000.0,\n    \"rope_type\": \"default\"\n  }";
    assert!(
        apart(
            "qwen3",
            "config.json",
            rope,
            "\"rope_theta\": 1000000, \"rope_scaling\": null"
        ) < SAME
    );
    let rope = "\"rope_parameters\": {\n    \"full_attention\": {\n      \"rope_theta\": 1000000.0,\n      \"rope_type\": \"default\"\n    },\n    \"sliding_attention\": {\n      \"rope_theta\": 10000.0,\n      \"rope_type\": \"default\"\n    }\n  }";
    let old = "\"rope_theta\": 1000000.0, \"rope_local_base_freq\": 10000.0";
    assert!(apart("gemma3", "config.json", rope, old) < SAME);
    let rope = rope.replace("1000000.0", "160000.0");
    let old = "\"global_rope_theta\": 160000.0, \"local_rope_theta\": 10000.0";
    assert!(apart("modernbert", "config.json", &rope, old) < SAME);
}

#[test]
fn what_a_family_does_not_have_is_refused_by_name() {
    let refused = |name: &str, old: &str, new: &str, said: &str| {
        let text = spoilt(name, "config.json", old, new);
        assert!(text.starts_with(&format!("config.json: {said}")), "{text}");
    };
    refused(
        "cls",
        "\"bert\"",
        "\"new\"",
        "model_type is \"new\", supported: bert, roberta, xlm-roberta, ",
    );
    refused(
        "cls",
        "\"bert\"",
        "\"t5\"",
        "model_type is \"t5\", supported: bert, ",
    );
    refused(
        "cls",
        "\"BertModel\"",
        "\"JinaBertModel\"",
        "architectures is \"JinaBertModel\", supported: BertModel",
    );
    refused(
        "roberta",
        "\"pad_token_id\": 1",
        "\"pad_token_id\": null",
        "pad_token_id is \"absent\"",
    );
    refused(
        "roberta",
        "\"pad_token_id\": 1",
        "\"pad_token_id\": 97",
        "pad_token_id is \"97\"",
    );
    refused(
        "distilbert",
        "\"gelu\"",
        "\"mish\"",
        "activation is \"mish\", supported: gelu, ",
    );
    refused(
        "mpnet",
        "_buckets\": 32",
        "_buckets\": 64",
        "relative_attention_num_buckets is \"64\", supported: 32",
    );
    refused(
        "modernbert",
        "\"default\"",
        "\"yarn\"",
        "rope_parameters.full_attention is ",
    );
    refused(
        "modernbert",
        "\"sliding_attention\",",
        "\"chunked_attention\",",
        "layer_types is \"chunked_attention\"",
    );
    refused(
        "modernbert",
        "\"num_hidden_layers\": 4",
        "\"num_hidden_layers\": 3",
        "layer_types is \"4\"",
    );
    refused(
        "modernbert",
        "\"num_attention_heads\": 3",
        "\"num_attention_heads\": 16",
        "num_attention_heads is \"16\", supported: one that",
    );
    for (key, value) in [
        ("prenorm", "true"),
        ("causal", "true"),
        ("qkv_proj_bias", "true"),
        ("rotary_emb_interleaved", "true"),
        ("rotary_emb_fraction", "0.5"),
        ("rotary_emb_scale_base", "512"),
        ("moe_every_n_layers", "2"),
        ("head_dim", "6"),
    ] {
        let old = if key == "head_dim" {
            "\"head_dim\": 12"
        } else {
            "\"hidden_size\""
        };
        let new = if key == "head_dim" {
            format!("\"head_dim\": {value}")
        } else {
            format!("\"{key}\": {value}, \"hidden_size\"")
        };
        let said = format!("{key} is ");
        refused("nomic", old, &new, &said);
    }
    refused(
        "gte",
        "\"hidden_size\"",
        "\"rope_scaling\": {\"type\": \"ntk\", \"factor\": 8.0}, \"hidden_size\"",
        "rope_scaling is ",
    );
    refused(
        "gte",
        "\"hidden_size\"",
        "\"logn_attention_scale\": true, \"hidden_size\"",
        "logn_attention_scale is ",
    );
    refused(
        "gte",
        "\"hidden_size\"",
        "\"layer_norm_type\": \"rms_norm\", \"hidden_size\"",
        "layer_norm_type is \"rms_norm\"",
    );
    refused(
        "qwen3",
        "\"use_sliding_window\": false",
        "\"use_sliding_window\": true",
        "use_sliding_window is \"true\"",
    );
    refused("qwen3", "\"default\"", "\"linear\"", "rope_parameters is ");
    refused(
        "qwen3",
        "\"num_key_value_heads\": 2",
        "\"num_key_value_heads\": 3",
        "num_key_value_heads is \"3\"",
    );
    refused(
        "qwen3",
        "\"head_dim\": 16",
        "\"head_dim\": 15",
        "head_dim is \"15\", supported: an even number",
    );
    refused(
        "gemma3",
        "\"attn_logit_softcapping\": null",
        "\"attn_logit_softcapping\": 50.0",
        "attn_logit_softcapping is \"50\"",
    );
    refused(
        "gemma3",
        "\"gemma3_text\"",
        "\"gemma3\"",
        "model_type is \"gemma3\"",
    );
    let text = spoilt(
        "gemma3",
        "2_Dense/config.json",
        "\"module_input_name\": \"sentence_embedding\"",
        "\"module_input_name\": \"token_embeddings\"",
    );
    assert_eq!(
        text,
        "2_Dense/config.json: module_input_name is \"token_embeddings\", supported: sentence_embedding"
    );
    let text = spoilt(
        "qwen3",
        "tokenizer_config.json",
        "\"padding_side\"",
        "\"truncation_side\": \"left\", \"padding_side\"",
    );
    assert_eq!(
        text,
        "tokenizer_config.json: truncation_side is \"left\", supported: right"
    );
    // All of it is known before a byte of the weights is read.
    let folder = copy("cls");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    Model::vet(folder.path()).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let error = Model::vet(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model_type is \"llama\""), "{error}");
}

// Goal: a token that only the tokenizer has is the text's fault, and no other text's. Method: a model whose table
// of words ends before the tokenizer's own tokens do, as EmbeddingGemma's.
#[test]
fn a_token_beyond_the_model_is_named() {
    let folder = copy("qwen3");
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    let own = spec["added_tokens"].as_array_mut().unwrap();
    let mut beyond = own[0].clone();
    beyond["id"] = 423.into();
    beyond["content"] = "<|beyond|>".into();
    own.push(beyond);
    std::fs::write(&path, spec.to_string()).unwrap();
    let model = load(folder.path());
    assert_eq!(
        model.tokenize("a <|beyond|> b", None, true),
        Err(TokenizeError::Unknown {
            token: 423,
            limit: 423
        })
    );
    assert!(model.tokenize("a b", None, true).is_ok());
}

// As sentence-transformers with `truncate_dim` and `normalize_embeddings`: the first numbers, at length one again.
#[test]
fn a_vector_cut_to_fewer_dimensions_is_that_of_the_reference() {
    for name in ["qwen3", "gemma3", "nomic"] {
        let model = load(&golden().join(name));
        for line in Golden::read(&golden().join(name).join("golden.jsonl")) {
            let whole = model
                .engine()
                .embed(&[&line.sequence(&model)], &mut || ())
                .unwrap();
            let cut = pooling::finish(whole.into_iter().next().unwrap().unwrap(), Some(20), true);
            let want = &line.vector()[..20];
            let length = cut.iter().map(|v| v * v).sum::<f32>();
            assert!(cut.len() == 20 && (length - 1.0).abs() < 1e-5, "{name}: {length}");
            assert!(cosine(&cut, want) > 0.999_999, "{name}: {}", cosine(&cut, want));
        }
    }
}

#[test]
fn families_are_named_in_what_is_known_of_a_model() {
    let name = |folder: &str| {
        let model = Model::load(&golden().join(folder), &LoadOptions::default(), &mut |_| ()).unwrap();
        let info = model.info();
        (
            info.architecture.clone(),
            info.dimensions,
            info.max_tokens,
            info.pooling.clone(),
        )
    };
    assert_eq!(name("xlm-roberta"), ("xlm-roberta".into(), 48, 96, "cls".into()));
    assert_eq!(name("gemma3"), ("gemma3_text".into(), 48, 300, "mean".into()));
    assert_eq!(name("qwen3"), ("qwen3".into(), 48, 300, "lasttoken".into()));
    assert_eq!(name("camembert").3, "max+mean");
}
