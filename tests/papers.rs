//! What is written down keeps to what is there.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Goal: an instance is the service in everything but its name. Method: the units, setting by setting.
#[test]
fn an_instance_s_unit_differs_from_the_service_s_in_its_names_alone() {
    let settings = |path: &str| -> Vec<String> {
        let text = read(path);
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let names = [
        ("embeddings@%i", "embeddings"),
        (" --instance %i", ""),
        (", instance %i", ""),
        ("RestartPreventExitStatus=78 2", "RestartPreventExitStatus=78"),
    ];
    let instance = settings("systemd/embeddings@.service").into_iter().map(|line| {
        let plain =
            |line: String, (of_instance, of_service): &(&str, &str)| line.replace(of_instance, of_service);
        names.iter().fold(line, plain)
    });
    assert_eq!(
        instance.collect::<Vec<_>>(),
        settings("systemd/embeddings.service")
    );
}
