//! Settings of a folder that would change vectors and that nothing here computes: refused, by the name of file and key.

use super::{copy, error, spoilt};
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
