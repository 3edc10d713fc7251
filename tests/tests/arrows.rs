//! Which package may know which, and what the pure ones may not know at all. ARCHITECTURE.md says why.

// The functions that the tests share are not seen as tests by the lint.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// For each package, those of ours that it may depend on. The tests may see all.
const ARROWS: [(&str, &[&str]); 8] = [
    ("usher-shared", &[]),
    ("usher-dial", &[]),
    ("usher-listen", &["usher-shared"]),
    ("usher-placement", &["usher-shared"]),
    (
        "usher-broker",
        &["usher-placement", "usher-dial", "usher-listen", "usher-shared"],
    ),
    ("usher-node-core", &["usher-shared"]),
    (
        "usher-node",
        &["usher-dial", "usher-listen", "usher-node-core", "usher-shared"],
    ),
    (
        "usher",
        &["usher-broker", "usher-dial", "usher-node", "usher-shared"],
    ),
];

/// All that a pure package may depend on: what gives data a shape, and nothing that could act.
const PURE: [(&str, &[&str]); 2] = [
    ("usher-placement", &["serde", "thiserror", "usher-shared"]),
    ("usher-node-core", &["thiserror", "usher-shared"]),
];

/// What no decision may mention: time comes as a `Timestamp`, effects leave as commands, chance as a seed.
const FORBIDDEN_IN_DECISIONS: [&str; 13] = [
    "Instant::now",
    "SystemTime",
    "usher_shared::clock",
    "tokio",
    "async ",
    "tracing",
    "println",
    "rand::",
    "getrandom",
    "RandomState",
    "std::fs",
    "std::net::Tcp",
    "std::thread",
];

/// Where the pure packages are.
const PURE_FOLDERS: [&str; 2] = ["broker/placement/src", "node/core/src"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every package of the workspace, with what it depends on by the kind of the dependency.
fn packages() -> BTreeMap<String, Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| (text(&package["name"]), Package::read(package)))
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[derive(Debug, Default)]
struct Package {
    /// Of the package itself, its build script included.
    normal: BTreeSet<String>,
    /// Of its tests and benchmarks.
    dev: BTreeSet<String>,
}

impl Package {
    fn read(package: &Value) -> Self {
        let mut read = Self::default();
        for dependency in package["dependencies"].as_array().unwrap() {
            let of_tests = dependency["kind"] == "dev";
            let side = if of_tests { &mut read.dev } else { &mut read.normal };
            side.insert(text(&dependency["name"]));
        }
        read
    }

    fn ours(&self) -> BTreeSet<&str> {
        let all = self.normal.union(&self.dev);
        all.map(String::as_str).filter(|name| is_ours(name)).collect()
    }
}

fn is_ours(name: &str) -> bool {
    name == "usher" || name.starts_with("usher-")
}

#[test]
fn packages_depend_on_each_other_along_the_arrows_only() {
    let packages = packages();
    for (name, allowed) in ARROWS {
        let package = packages
            .get(name)
            .unwrap_or_else(|| panic!("{name} is gone: change the arrows here"));
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let ours = package.ours();
        let wrong: Vec<_> = ours.difference(&allowed).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

#[test]
fn every_package_has_its_arrows() {
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    for name in packages().keys().filter(|name| *name != "usher-tests") {
        assert!(
            known.contains(name.as_str()),
            "{name} is new: say in ARROWS what it may depend on"
        );
    }
}

#[test]
fn a_pure_package_depends_on_nothing_that_could_act() {
    let packages = packages();
    for (name, allowed) in PURE {
        let allowed: BTreeSet<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        let wrong: Vec<_> = packages[name].normal.difference(&allowed).collect();
        assert!(
            wrong.is_empty(),
            "{name} is pure and must not depend on {wrong:?}"
        );
    }
}

#[test]
fn decisions_know_no_clock_no_chance_and_no_effect() {
    let root = root();
    let files: Vec<PathBuf> = PURE_FOLDERS
        .iter()
        .flat_map(|folder| rust_files(&root.join(folder)))
        .collect();
    assert!(files.len() > 10 * PURE_FOLDERS.len() / 2);
    let mut wrong = Vec::new();
    for file in files {
        let source =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for (number, line) in source.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let found = FORBIDDEN_IN_DECISIONS
                .into_iter()
                .filter(|word| code.contains(word));
            wrong.extend(found.map(|word| format!("{}:{}: {word}", file.display(), number + 1)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
