//! What the tests that drive the real Claude agents share: Python, the demo server, and projects to work on.
//!
//! With `MNEMOSYNE_LIVE=1` and a key the same tests ask the real API.
#![allow(dead_code)] // each test program uses a part

use mnemosyne::{AgentSpec, WorkItem};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const EXECUTOR: &str = "mnemosyne.agents.executor:ExecutorAgent";
pub(crate) const REVIEWER: &str = "mnemosyne.agents.reviewer:ReviewerAgent";
pub(crate) const TEST: &str = "python3 -m unittest tests.test_pricing";
/// Names what a test does in a process of its own.
const ALONE: &str = "MNEMOSYNE_TEST_ALONE";

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where Python finds the package, what it needs (make build puts that into `.venv`), and our agents.
fn python_paths() -> Vec<PathBuf> {
    let mut paths = vec![repository().join("python"), repository().join("tests/rust/agents")];
    let environments = std::fs::read_dir(repository().join(".venv/lib")).into_iter().flatten().flatten();
    paths.extend(environments.map(|version| version.path().join("site-packages")));
    paths
}

pub(crate) fn initialize() {
    let config = mnemosyne::python::Config { paths: python_paths(), api_key: None };
    mnemosyne::python::initialize(config).expect("Python starts");
}

/// A command in the Python that this build was made with.
pub(crate) fn python() -> Command {
    let mut command = Command::new(std::env::var_os("PYO3_PYTHON").unwrap_or_else(|| "python3".into()));
    let paths = std::env::join_paths(python_paths()).expect("paths without colons");
    command.env("PYTHONPATH", paths).env("NO_PROXY", "127.0.0.1");
    command
}

/// Runs a test of this program again in a process of its own, in which nothing may panic; whether this is that process.
pub(crate) fn alone(test: &str) -> bool {
    let Some(said) = said_alone(test) else { return true };
    assert!(!said.contains("panicked"), "{said}");
    false
}

/// What a test printed in a process of its own, or `None` in that process.
pub(crate) fn said_alone(test: &str) -> Option<String> {
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    let kept = tempfile::tempdir().expect("a folder for keys");
    again.args(["--exact", test, "--nocapture"]).env(ALONE, test).env("XDG_CONFIG_HOME", kept.path());
    if !is_live() {
        again.env_remove("ANTHROPIC_API_KEY").env_remove("ANTHROPIC_AUTH_TOKEN");
    }
    again.env_remove("DBUS_SESSION_BUS_ADDRESS").env("ANTHROPIC_CONFIG_DIR", kept.path());
    let ended = again.output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    Some(said.into_owned())
}

/// `mnemosyne demo serve`, in a process of its own that ends with this value; nothing where the real API is asked.
pub(crate) struct Claude {
    server: Option<(Child, String)>,
}

impl Claude {
    pub(crate) fn start() -> Self {
        Self::with_faults(None)
    }

    pub(crate) fn with_faults(faults: Option<&Path>) -> Self {
        if is_live() {
            return Self { server: None };
        }
        let mut command = python();
        command.args(["-m", "mnemosyne.demo.server", "--port", "0"]).stdout(Stdio::piped());
        if let Some(faults) = faults {
            command.arg("--faults").arg(faults);
        }
        let mut child = command.spawn().expect("the demo server starts");
        let mut address = String::new();
        let output = child.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut address).expect("its address");
        Self { server: Some((child, address.trim().to_owned())) }
    }

    /// An agent that talks to it.
    pub(crate) fn agent(&self, class: &str) -> AgentSpec {
        let mut spec = AgentSpec::import(class);
        if let Some((_, url)) = &self.server {
            spec.config.insert("base_url".into(), json!(url));
            spec.config.insert("model".into(), json!("demo"));
        }
        spec
    }
}

impl Drop for Claude {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.server {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn is_live() -> bool {
    std::env::var_os("MNEMOSYNE_LIVE").is_some_and(|set| set == "1")
}

/// The sample project, unfinished.
pub(crate) fn sample(folder: &Path) -> PathBuf {
    let tree = folder.to_path_buf();
    let copy =
        "import pathlib, sys; from mnemosyne.demo.sample import copy_sample; copy_sample(pathlib.Path(sys.argv[1]))";
    assert!(python().args(["-c", copy]).arg(&tree).status().expect("Python runs").success());
    assert!(!is_green(&tree), "the sample is unfinished");
    tree
}

/// Whether the tests of what was to be finished pass.
pub(crate) fn is_green(tree: &Path) -> bool {
    let words: Vec<&str> = TEST.split(' ').skip(1).collect();
    let ended = python().args(words).current_dir(tree).output().expect("Python runs");
    ended.status.success()
}

/// One module of the sample, to be finished in `tree`.
pub(crate) fn work(id: &str, tree: Option<&Path>) -> WorkItem {
    let mut context = json!({"acceptance": [{"command": TEST}]});
    if let Some(tree) = tree {
        context["tree"] = json!(tree);
    }
    item(id, "executor", context)
}

pub(crate) fn item(id: &str, role: &str, context: Value) -> WorkItem {
    serde_json::from_value(json!({
        "id": id, "description": "Finish shop.pricing", "phase": "plan_to_artifacts", "role": role,
        "file_scope": ["shop/pricing.py"], "context": context,
    }))
    .expect("a work item")
}

/// Waits for what has to come; a hang is a failure.
pub(crate) async fn within<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), coming).await.expect("it came within 60 s")
}

/// Polls until the condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
