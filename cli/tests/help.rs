//! The executable without a broker: help, wrong input, and what is said when nobody is there.

// A helper of tests is as much a test as they are.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

const VERBS: [&str; 19] = [
    "dev",
    "broker",
    "node",
    "status",
    "nodes",
    "teams",
    "assign",
    "forget",
    "why",
    "drain",
    "undrain",
    "shed",
    "cordon",
    "uncordon",
    "operations",
    "operation",
    "release",
    "connect",
    "load",
];

fn usher(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_usher"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("USHER_") {
            command.env_remove(variable);
        }
    }
    command.args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in VERBS {
        let output = usher(&[verb, "--help"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{verb}");
        assert!(
            text.contains("Example") && text.contains("usher "),
            "{verb}: {text}"
        );
    }
}

#[test]
fn the_overview_lists_every_verb() {
    let output = usher(&["--help"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for verb in VERBS {
        assert!(text.contains(&format!("\n  {verb} ")), "{verb}: {text}");
    }
}

#[test]
fn without_a_broker_every_question_says_what_to_do() {
    for arguments in [
        &["status"] as &[&str],
        &["nodes"],
        &["nodes", "node-1"],
        &["teams"],
        &["assign", "T1"],
        &["forget", "T1"],
        &["why", "T1"],
        &["drain", "node-1"],
        &["undrain", "node-1"],
        &["shed", "node-1", "--teams", "1"],
        &["cordon", "node-1"],
        &["uncordon", "node-1"],
        &["operations"],
        &["operation", "x"],
        &["release"],
    ] {
        let output = usher(&[arguments, &["--admin", "http://127.0.0.1:1"]].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.starts_with("error: no broker at http://127.0.0.1:1") && text.contains("`usher dev`"),
            "{arguments:?}: {text}"
        );
    }
}

#[test]
fn wrong_input_is_refused_before_anything_is_asked() {
    let long = "x".repeat(129);
    for (arguments, said) in [
        (&["why", "a/b"] as &[&str], "must match"),
        (&["why", ".."], "must match"),
        (&["why", ""], "must not be empty"),
        (&["why", &long], "at most 128 bytes"),
        (&["why", "\u{1f600}"], "must match"),
        (&["drain", "a:b"], "must match"),
        (&["drain", "node-1", "--rate", "0"], "not in 1..=10000"),
        (&["drain", "node-1", "--deadline", "soon"], "500ms"),
        (&["teams", "--limit", "0"], "not in 1.."),
        (&["shed", "node-1"], "required"),
        (&["shed", "node-1", "--percent", "101"], "not in 1..=100"),
        (
            &["shed", "node-1", "--percent", "1", "--teams", "1"],
            "cannot be used with",
        ),
        (&["assign", "T1", "--label", "x"], "not key=value"),
        (&["assign", "T1", "--weight", "0"], "from 1 to 10000"),
        (&["assign", "T1", "--hard"], "--pin"),
        (&["status", "--admin", "127.0.0.1:7401"], "not a URL"),
        (&["load", "--usher-v1", "some"], "50%"),
        (&["load", "--connections", "0"], "not in 1.."),
        (&["connect", "T1", "--broker", "h:7400"], "not a broker's URL"),
        (&["dev", "--nodes", "0"], "not in 1..=100"),
        (&["dev", "--ports", "none"], "auto"),
    ] {
        let output = usher(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(
            text.contains("error: ") && text.contains(said),
            "{arguments:?}: {text}"
        );
    }
}

#[test]
fn a_configuration_that_cannot_work_ends_with_code_2_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("usher.toml");
    std::fs::write(&config, "[broker]\nclient = \"127.0.0.1:0\"\n").unwrap();
    let config = config.to_str().unwrap();
    let output = usher(&["broker", "--config", config]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("unknown field `client`") && text.contains("line 2"),
        "{text}"
    );
    let output = usher(&["node", "--config", "/nowhere/usher.toml"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("/nowhere/usher.toml") && text.contains("because: "),
        "{text}"
    );
    let output = usher(&["node", "--listen", "0.0.0.0:0", "--name", "n"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("USHER_NODE_TOKEN"), "{text}");
}

#[test]
fn a_listener_that_cannot_open_ends_with_code_2_and_the_flag_that_moves_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let free = "127.0.0.1:0";
    let broker = |clients, admin| {
        usher(&[
            "broker",
            "--data",
            data,
            "--clients",
            clients,
            "--admin",
            admin,
            "--node-link",
            free,
        ])
    };
    for (output, flag) in [
        (broker(&taken, free), "--clients"),
        (broker(free, &taken), "--admin"),
        (broker(free, "0.0.0.0:0"), "--operator-token-file"),
        (broker("0.0.0.0:0", free), "--public-url"),
        (
            usher(&["node", "--name", "n", "--listen", &taken, "--admin", free]),
            "--listen",
        ),
    ] {
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{flag}: {text}");
        assert!(text.contains("error: ") && text.contains(flag), "{flag}: {text}");
    }
}

#[test]
fn a_token_file_that_is_none_is_named() {
    let output = usher(&["status", "--operator-token-file", "/nowhere/token"]);
    let text = stderr(&output);
    assert!(text.contains("/nowhere/token"), "{text}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_taken_port_is_named_before_anything_starts() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let output = usher(&["dev", "--ports", "auto", "--node-port", &port]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains(&format!("port {port}")) && text.contains("--node-port"),
        "{text}"
    );
}

#[test]
fn a_load_that_cannot_fit_says_how_to_split_it() {
    let output = usher(&["load", "--connections", "4000000000", "--teams", "4000000000"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("file descriptors") && text.contains("--team-prefix"),
        "{text}"
    );
}
