//! Settings of a folder that would change vectors and that nothing here computes: refused, by the name of file and key.

use super::{copy, error, load, spoilt};
use embeddings::engine::{LoadOptions, Model};
use std::path::Path;

/// What is said of a folder in which `file` holds `text`, or in which a key of it does.
fn with(name: &str, file: &str, text: &str) -> String {
    let folder = copy(name);
    std::fs::write(folder.path().join(file), text).unwrap();
    error(folder.path())
        .to_string()
        .replace(&format!("{}/", folder.path().display()), "")
}

/// Loads a folder to whose `file` these keys were added.
fn loads_with(name: &str, file: &str, keys: &str) {
    let folder = copy(name);
    put(folder.path(), file, keys);
    Model::load(folder.path(), &LoadOptions::default(), &mut |_| ()).unwrap();
}

fn put(folder: &Path, file: &str, keys: &str) {
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', &format!("{{{keys},"), 1)).unwrap();
}

/// What is said of a folder to whose `file` these keys were added.
fn adding(name: &str, file: &str, keys: &str) -> String {
    let folder = copy(name);
    put(folder.path(), file, keys);
    error(folder.path())
        .to_string()
        .replace(&format!("{}/", folder.path().display()), "")
}

fn says(text: &str, begin: &str) {
    assert!(text.starts_with(begin), "{text}\n  does not begin with\n{begin}");
}

#[test]
fn modules_are_taken_as_they_are_set_or_refused() {
    says(
        &adding("sqrt-dense", "2_Dense/config.json", "\"use_residual\": true"),
        "2_Dense/config.json: use_residual is \"true\", supported: false",
    );
    loads_with("sqrt-dense", "2_Dense/config.json", "\"use_residual\": false");
    says(
        &with(
            "modernbert",
            "2_Normalize/config.json",
            "{\"module_input_name\": \"token_embeddings\"}",
        ),
        "2_Normalize/config.json: module_input_name is \"token_embeddings\", supported: sentence_embedding",
    );
    says(
        &adding("cls", "config_sentence_transformers.json", "\"truncate_dim\": 16"),
        "config_sentence_transformers.json: truncate_dim is \"16\"",
    );
    loads_with(
        "cls",
        "config_sentence_transformers.json",
        "\"truncate_dim\": null",
    );
    says(
        &with("cls", "adapter_config.json", "{\"peft_type\": \"LORA\"}"),
        "adapter_config.json: peft_type is",
    );
}

// Goal: prompts that the reference takes for empty ones are. Method: a prompt of no text, and the two names that each model has there.
#[test]
fn prompts_may_be_none() {
    let file = "config_sentence_transformers.json";
    let info = |text: &str| {
        let folder = copy("cls");
        std::fs::write(folder.path().join(file), text).unwrap();
        let model = Model::load(folder.path(), &LoadOptions::default(), &mut |_| ()).unwrap();
        (model.info().prompts.clone(), model.info().default_prompt.clone())
    };
    let (prompts, default) =
        info(r#"{"prompts": {"query": null, "document": "d: "}, "default_prompt_name": "document"}"#);
    assert_eq!(
        (prompts["query"].as_str(), prompts["document"].as_str()),
        ("", "d: ")
    );
    assert_eq!(default.as_deref(), Some("document"));
    let (prompts, default) = info(r#"{"prompts": {}, "default_prompt_name": "query"}"#);
    assert!(prompts.is_empty() && default.is_none());
    says(
        &with(
            "cls",
            file,
            r#"{"prompts": {}, "default_prompt_name": "question"}"#,
        ),
        "config_sentence_transformers.json: default_prompt_name is \"question\"",
    );
}

// Goal: a vector's numbers are known without loading it. Method: several poolings, Dense modules, a family that names its width otherwise.
#[test]
fn dimensions_are_those_of_the_vectors() {
    for name in ["joined", "distilbert", "sqrt-dense", "nomic", "cls"] {
        let folder = copy(name);
        let model = Model::load(folder.path(), &LoadOptions::default(), &mut |_| ()).unwrap();
        assert_eq!(
            Model::dimensions(folder.path()).unwrap(),
            model.info().dimensions,
            "{name}"
        );
        let facts = embeddings::cli::model::inspect(folder.path()).unwrap();
        assert_eq!(facts.dimensions, Some(model.info().dimensions), "{name}");
    }
}

// Goal: a folder written long ago is read as the reference reads it now: no switch on means the mean, no activation tanh.
#[test]
fn older_modules_mean_what_the_reference_takes_them_for() {
    let chain = |name: &str, file: &str, text: &str| {
        let folder = copy(name);
        std::fs::write(folder.path().join(file), text).unwrap();
        let model = load(folder.path());
        let sequence = model.tokenize("the house is old", None, true).unwrap();
        let vector = model.engine().embed(&[&sequence], &mut || ()).unwrap().remove(0);
        (model.info().pooling.clone(), vector.unwrap())
    };
    let file = "1_Pooling/config.json";
    for text in [
        "{\"word_embedding_dimension\": 32}",
        "{\"word_embedding_dimension\": 32, \"pooling_mode_cls_token\": false, \"pooling_mode_mean_tokens\": false}",
    ] {
        assert_eq!(chain("cls", file, text).0, "mean", "{text}");
    }
    says(
        &with("cls", file, "{\"pooling_mode\": []}"),
        "1_Pooling/config.json: pooling_mode is \"[]\"",
    );
    let dense = "{\"in_features\": 32, \"out_features\": 40, \"bias\": true}";
    let file = "2_Dense/config.json";
    let written = std::fs::read_to_string(copy("sqrt-dense").path().join(file)).unwrap();
    assert!(written.contains("Tanh"));
    assert_eq!(
        chain("sqrt-dense", file, dense),
        chain("sqrt-dense", file, &written)
    );
}

#[test]
fn what_another_kind_of_model_needs_is_refused() {
    says(
        &spoilt(
            "cls",
            "config_sentence_transformers.json",
            "\"SentenceTransformer\"",
            "\"SparseEncoder\"",
        ),
        "config_sentence_transformers.json: model_type is \"SparseEncoder\", supported: SentenceTransformer",
    );
    let file = "sentence_bert_config.json";
    for (key, value) in [
        ("query_length", "32"),
        ("document_length", "32"),
        ("query_expansion", "{\"strategy\": \"fixed\", \"length\": 32}"),
    ] {
        says(
            &adding("cls", file, &format!("\"{key}\": {value}")),
            &format!("{file}: {key} is"),
        );
        loads_with("cls", file, &format!("\"{key}\": null"));
    }
    says(
        &adding(
            "cls",
            "config.json",
            "\"quantization_config\": {\"quant_method\": \"bitsandbytes\"}",
        ),
        "config.json: quantization_config is \"bitsandbytes\", supported: null",
    );
    for path in ["../elsewhere", "/etc", "1_Pooling/../.."] {
        says(
            &spoilt("cls", "modules.json", "\"1_Pooling\"", &format!("\"{path}\"")),
            &format!("modules.json: path of module 1 is \"{path}\""),
        );
    }
}

// Goal: lower case where the module asks for it is what the reference does: before all else, but for the tokenizer's own
// tokens. Method: tokens of the same text, lowered by hand, in the same model without that setting.
#[test]
fn a_module_that_lowers_case_keeps_the_tokenizers_own_tokens() {
    for (name, mask) in [("roberta", "<mask>"), ("cls", "[MASK]")] {
        let plain = copy(name);
        let lowering = copy(name);
        put(
            lowering.path(),
            "sentence_bert_config.json",
            "\"do_lower_case\": true",
        );
        let (plain, lowering) = (load(plain.path()), load(lowering.path()));
        let ids = |model: &Model, text: &str| model.tokenize(text, None, true).unwrap().ids;
        let text = format!("The OLD {mask} House, STRASSE");
        let lowered = format!("the old {mask} house, strasse");
        assert_eq!(ids(&lowering, &text), ids(&plain, &lowered), "{name}");
        if name == "roberta" {
            assert_ne!(ids(&plain, &text), ids(&plain, &lowered));
        }
        let long = "Some WORDS, and ".repeat(4000);
        assert_eq!(ids(&lowering, &long), ids(&plain, &long.to_lowercase()), "{name}");
    }
}

#[test]
fn settings_of_the_transformer_are_refused_by_name() {
    let file = "sentence_bert_config.json";
    says(
        &spoilt("cls", file, "\"text\": {", "\"message\": {"),
        "sentence_bert_config.json: modality_config is \"message\", supported: text",
    );
    says(
        &spoilt("cls", file, "last_hidden_state", "pooler_output"),
        "sentence_bert_config.json: modality_config.text.method_output_name is",
    );
    for (keys, key) in [
        (
            "\"tokenizer_args\": {\"model_max_length\": 8}",
            "tokenizer_args.model_max_length",
        ),
        (
            "\"processing_kwargs\": {\"text\": {\"max_length\": 8}}",
            "processing_kwargs.text",
        ),
        (
            "\"config_args\": {\"hidden_act\": \"relu\"}",
            "config_args.hidden_act",
        ),
    ] {
        says(&adding("cls", file, keys), &format!("{file}: {key} is"));
    }
    loads_with(
        "cls",
        file,
        "\"model_args\": {\"dtype\": \"float32\"}, \"tokenizer_args\": {}",
    );
}

// Goal: the limit counts wherever it stands. Method: a folder whose settings have an older name, and one with `max_len`.
#[test]
fn the_longest_sequence_is_found_under_older_names() {
    for (file, text) in [
        ("sentence_roberta_config.json", "{\"max_seq_length\": 7}"),
        ("tokenizer_config.json", "{\"max_len\": 7}"),
        (
            "tokenizer_config.json",
            "{\"max_len\": 9, \"model_max_length\": 7}",
        ),
    ] {
        let folder = copy("cls");
        std::fs::remove_file(folder.path().join("sentence_bert_config.json")).unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        let model = Model::load(folder.path(), &LoadOptions::default(), &mut |_| ()).unwrap();
        assert_eq!(model.info().max_tokens, 7, "{file}");
    }
}

#[test]
fn a_limit_without_room_for_a_text_is_refused_where_it_stands() {
    let file = "sentence_bert_config.json";
    says(
        &with("cls", file, "{\"max_seq_length\": 2}"),
        &format!("{file}: max_seq_length is \"2\", supported: more than the 2 tokens around a text"),
    );
    let folder = copy("cls");
    std::fs::remove_file(folder.path().join(file)).unwrap();
    let file = "tokenizer_config.json";
    std::fs::write(folder.path().join(file), "{\"model_max_length\": 2}").unwrap();
    let text = error(folder.path()).to_string();
    assert!(
        text.contains(&format!("{file}: model_max_length is \"2\"")),
        "{text}"
    );
}

#[test]
fn what_the_configuration_turns_round_is_refused() {
    for (name, value, known) in [
        ("cls", true, false),
        ("modernbert", true, false),
        ("qwen3", false, true),
        ("gemma3", false, true),
    ] {
        says(
            &adding(name, "config.json", &format!("\"is_causal\": {value}")),
            &format!("config.json: is_causal is \"{value}\", supported: {known}"),
        );
        loads_with(name, "config.json", &format!("\"is_causal\": {known}"));
    }
    says(
        &adding("modernbert", "config.json", "\"sliding_window\": 4"),
        "config.json: sliding_window is \"4\", supported: 8",
    );
    loads_with("modernbert", "config.json", "\"sliding_window\": 8");
}

#[test]
fn both_files_of_a_tokenizer_must_agree() {
    let file = "tokenizer_config.json";
    for (text, key) in [
        (
            "{\"tokenizer_class\": \"BertTokenizer\", \"do_lower_case\": false}",
            "do_lower_case",
        ),
        (
            "{\"tokenizer_class\": \"BertTokenizerFast\", \"strip_accents\": false}",
            "strip_accents",
        ),
        (
            "{\"tokenizer_class\": \"DistilBertTokenizer\", \"tokenize_chinese_chars\": false}",
            "tokenize_chinese_chars",
        ),
        ("{\"split_special_tokens\": true}", "split_special_tokens"),
        ("{\"truncation_side\": \"left\"}", "truncation_side"),
    ] {
        says(&with("cls", file, text), &format!("{file}: {key} is"));
    }
    says(
        &with(
            "roberta",
            file,
            "{\"tokenizer_class\": \"RobertaTokenizer\", \"add_prefix_space\": true}",
        ),
        &format!("{file}: add_prefix_space is"),
    );
    // What a class takes where a key is absent, and the class that a family has where none is named.
    let changed = |name: &str, from: &str, to: &str, config: Option<&str>| {
        let folder = copy(name);
        let path = folder.path().join("tokenizer.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{name}: {from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        match config {
            Some(config) => std::fs::write(folder.path().join(file), config).unwrap(),
            None => std::fs::remove_file(folder.path().join(file)).unwrap(),
        }
        error(folder.path()).to_string()
    };
    let lowercase = ("\"lowercase\": true", "\"lowercase\": false");
    let accents = ("\"strip_accents\": null", "\"strip_accents\": false");
    let space = ("\"add_prefix_space\": false", "\"add_prefix_space\": true");
    for (name, (from, to), config, key) in [
        ("cls", lowercase, None, "do_lower_case is \"true\""),
        (
            "mpnet",
            lowercase,
            Some("{\"model_max_length\": 64}"),
            "do_lower_case is \"true\"",
        ),
        (
            "cls",
            accents,
            Some("{\"tokenizer_class\": \"BertTokenizer\"}"),
            "strip_accents is \"true\"",
        ),
        ("roberta", space, None, "add_prefix_space is \"false\""),
    ] {
        let text = changed(name, from, to, config);
        assert!(text.contains(&format!("{file}: {key}")), "{name}: {text}");
    }
    // Where nothing else says which side.
    let folder = copy("cls");
    std::fs::remove_file(folder.path().join(file)).unwrap();
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let left = text.replace("\"direction\": \"Right\"", "\"direction\": \"Left\"");
    assert_ne!(left, text);
    std::fs::write(&path, left).unwrap();
    let text = error(folder.path()).to_string();
    assert!(text.contains("tokenizer.json: truncation.direction is"), "{text}");
}

// Goal: weights stored in 64 bits are read, and those in numbers that nothing here computes with are named. Method: a
// small model's own file, written anew.
#[test]
fn weights_are_read_in_the_numbers_they_are_stored_in() {
    use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
    type Change<'a> = &'a dyn Fn(&str, &[u8]) -> (Dtype, Vec<u8>);
    let store = |change: Change<'_>| {
        let folder = copy("cls");
        let file = folder.path().join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let changed: Vec<_> = tensors
            .iter()
            .map(|(name, view)| {
                let (dtype, bytes) = change(name, view.data());
                (name, dtype, view.shape().to_vec(), bytes)
            })
            .collect();
        let views = changed.iter().map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        std::fs::write(&file, serialize(views, None).unwrap()).unwrap();
        folder
    };
    let wide = |_: &str, bytes: &[u8]| {
        let numbers = bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes);
        let wide = numbers.flat_map(|number| f64::from(number).to_le_bytes());
        (Dtype::F64, wide.collect())
    };
    let vector = |folder: &Path| {
        let model = load(folder);
        let sequence = model.tokenize("the house is old", None, true).unwrap();
        let vectors = model.engine().embed(&[&sequence], &mut || ()).unwrap();
        vectors.into_iter().next().unwrap().unwrap()
    };
    assert_eq!(vector(store(&wide).path()), vector(copy("cls").path()));

    let name = "encoder.layer.1.output.dense.weight";
    let narrow = |tensor: &str, bytes: &[u8]| match tensor == name {
        true => (Dtype::I8, vec![1; bytes.len() / 4]),
        false => (Dtype::F32, bytes.to_vec()),
    };
    let text = error(store(&narrow).path()).to_string();
    let said = format!("tensor {name} is stored as I8, supported: F64, F32, F16, BF16");
    assert!(text.ends_with(&said), "{text}");
}

// Goal: equal fingerprints mean comparable vectors. Method: one number of a Dense module is another.
#[test]
fn the_fingerprint_is_of_all_weights() {
    let (one, other) = (copy("sqrt-dense"), copy("sqrt-dense"));
    let file = other.path().join("2_Dense/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x80;
    std::fs::write(&file, &bytes).unwrap();
    let (one, other) = (load(one.path()), load(other.path()));
    assert_ne!(one.fingerprint(40), other.fingerprint(40));
    let files = ["model", "2_Dense/model", "3_Dense/model"];
    let folder = copy("sqrt-dense");
    let sizes = files.map(|file| {
        let file = folder.path().join(format!("{file}.safetensors"));
        std::fs::metadata(file).unwrap().len()
    });
    assert_eq!(one.info().weights_bytes, sizes.iter().sum::<u64>());
}
