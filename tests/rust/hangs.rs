//! Rust programs that could stand still, each in a process of its own with a deadline; one that is not over by then
//! shows its stacks. The scenarios in Python are in `tests/python/hangs`.

use super::{initialize, item};
use mnemosyne::{AgentRole, AgentSpec, BridgeError, ClaudeAgentBridge, WorkItem};
use serde_json::{Value, json};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Names the scenario that a process is for.
const SCENARIO: &str = "MNEMOSYNE_TEST_SCENARIO";
const DEADLINE: Duration = Duration::from_secs(30);

/// What `callbacks.py` calls: the embedding program's own functions.
#[pyo3::pymodule]
pub(super) mod rust_callbacks {
    use super::{LOCK, RUNTIME, WAITING, WORKING, locked};
    use pyo3::pyfunction;
    use std::sync::atomic::Ordering;

    #[pyfunction]
    fn explode() {
        panic!("a bug in a callback");
    }

    /// Waits for a lock of the program while it is attached.
    #[pyfunction]
    fn take_lock() {
        WAITING.store(true, Ordering::SeqCst);
        drop(locked(&LOCK));
    }

    #[pyfunction]
    fn drop_runtime() {
        let runtime = locked(&RUNTIME).take();
        drop(runtime.expect("a runtime"));
    }

    #[pyfunction]
    fn working() {
        WORKING.store(true, Ordering::SeqCst);
    }
}

static LOCK: Mutex<()> = Mutex::new(());
static WAITING: AtomicBool = AtomicBool::new(false);
static WORKING: AtomicBool = AtomicBool::new(false);
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true in time");
        std::thread::sleep(Duration::from_millis(2)); // polling a condition with a deadline
    }
}

/// Runs this binary again for one scenario. Returns its exit code and what it printed.
pub(super) fn alone(scenario: &str) -> (i32, String) {
    let myself = std::env::current_exe().expect("this binary");
    let mut child = Command::new(myself)
        .args(["--exact", "hangs::scenario", "--nocapture", "--test-threads=1"])
        .env(SCENARIO, scenario)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("this binary runs again");
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if Instant::now() > deadline {
            let stacks = stacks(child.id());
            let _ = child.kill();
            panic!("{scenario} hangs: not over after {DEADLINE:?}\n{stacks}");
        }
        std::thread::sleep(Duration::from_millis(10)); // polling a condition with a deadline
    };
    let mut said = String::new();
    child.stdout.take().expect("its output").read_to_string(&mut said).expect("text");
    // Without the lines of the test harness.
    let said: Vec<&str> = said.lines().filter_map(|line| line.split_once("said: ").map(|(_, words)| words)).collect();
    (status.code().unwrap_or(-1), said.join("\n"))
}

fn stacks(pid: u32) -> String {
    let gdb =
        Command::new("gdb").args(["-batch", "-nx", "-ex", "thread apply all bt 40", "-p", &pid.to_string()]).output();
    gdb.map_or_else(
        |error| format!("no stacks: {error}"),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

fn say(words: &str) {
    println!("said: {words}");
}

#[test]
fn scenario() {
    match std::env::var(SCENARIO).unwrap_or_default().as_str() {
        "" => {} // only in a process of its own
        "without_python" => without_python(),
        "panics" => panics(),
        "abba" => abba(),
        "runtime_before_bridge" => runtime_before_bridge(),
        "runtime_in_a_callback" => runtime_in_a_callback(),
        "exit_while_busy" => exit_while_busy(),
        other => panic!("there is no scenario {other:?}"),
    }
}

fn with(context: Value) -> WorkItem {
    let mut item = item("w-1");
    item.context = context.as_object().expect("an object").clone();
    item
}

fn spawned(runtime: &Runtime, agent: &str, in_flight: u32) -> ClaudeAgentBridge {
    initialize();
    let mut spec = AgentSpec::import(agent);
    spec.in_flight = in_flight;
    runtime.block_on(ClaudeAgentBridge::spawn(AgentRole::Executor, spec)).expect("the agent starts")
}

fn without_python() {
    let runtime = Runtime::new().expect("a runtime");
    let spec = AgentSpec::import("greeter:Greeter");
    match runtime.block_on(ClaudeAgentBridge::spawn(AgentRole::Executor, spec)).map(|_| ()) {
        Err(BridgeError::PythonNotInitialized) => say("PythonNotInitialized"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_python_spawn_is_an_error_and_not_a_panic() {
    assert_eq!(alone("without_python"), (0, "PythonNotInitialized".to_owned()));
}

fn panics() {
    let runtime = Runtime::new().expect("a runtime");
    for agent in ["callbacks:CallsBack", "callbacks:PlainCallsBack"] {
        let bridge = spawned(&runtime, agent, 1);
        for context in [json!({"function": "explode"}), json!({"function": "working"})] {
            match runtime.block_on(bridge.send_work(with(context), None)) {
                Ok(result) => say(&format!("success {}", result.success)),
                Err(BridgeError::Agent(error)) => say(&error.type_name),
                Err(error) => panic!("{error}"),
            }
        }
    }
    let bridge = spawned(&runtime, "callbacks:CallsBack", 1);
    let context = json!({"function": "explode", "from_the_loop": true});
    let result = runtime.block_on(bridge.send_work(with(context), None)).expect("its item was not what panicked");
    say(&format!("success {}", result.success));
}

#[test]
fn a_panic_in_a_callback_is_the_failure_of_its_item() {
    let each = "PanicException\nsuccess true\n";
    assert_eq!(alone("panics"), (0, format!("{each}{each}success true")));
}

/// One side holds a lock of the program and calls the bridge; the other holds the GIL and waits for that lock. If a call
/// took the GIL, neither could ever go on.
fn abba() {
    let runtime = Runtime::new().expect("a runtime");
    let bridge = spawned(&runtime, "callbacks:CallsBack", 8);
    let held = locked(&LOCK);
    let _entered = runtime.enter();
    let waiting = bridge.try_send_work(with(json!({"function": "take_lock"})), None).expect("a place");
    let waiting = runtime.spawn(waiting);
    until(|| WAITING.load(Ordering::SeqCst));
    let more: Vec<_> = (0..4)
        .map(|_| bridge.try_send_work(with(json!({"function": "working"})), None).expect("a place"))
        .map(|work| runtime.spawn(work))
        .collect();
    drop(bridge.try_send_work(with(json!({"function": "explode"})), None).expect("a place"));
    say(&format!("state {}", bridge.health().state));
    runtime.block_on(async { bridge.record_error("seen elsewhere").await }).expect("it is charged");
    drop(held);
    for work in more.into_iter().chain([waiting]) {
        let result = runtime.block_on(work).expect("no panic").expect("a result");
        assert!(result.success);
    }
    say("all done");
}

#[test]
fn gil_2_calls_under_a_lock_that_python_waits_for_return() {
    assert_eq!(alone("abba"), (0, "state busy\nall done".to_owned()));
}

/// The runtime is dropped first, with the agent at work; what is left of the bridge says that it is closed.
fn runtime_before_bridge() {
    let runtime = Runtime::new().expect("a runtime");
    let bridge = spawned(&runtime, "callbacks:Sleeps", 1);
    let work = bridge.clone();
    runtime.spawn(async move { work.send_work(item("w-1"), None).await });
    until(|| WORKING.load(Ordering::SeqCst));
    drop(runtime);
    say("runtime dropped");
    let other = Runtime::new().expect("another runtime");
    assert!(other.block_on(bridge.send_work(item("w-2"), Some(Duration::from_millis(200)))).is_err());
    say("refused");
    drop(bridge);
    // And a new one may be made on another runtime.
    let again = spawned(&other, "echo:Echo", 1);
    assert!(other.block_on(again.send_work(item("w-3"), None)).is_ok());
}

#[test]
fn a_runtime_that_is_dropped_before_its_bridge_ends() {
    assert_eq!(alone("runtime_before_bridge"), (0, "runtime dropped\nrefused".to_owned()));
}

fn runtime_in_a_callback() {
    let runtime = Runtime::new().expect("a runtime");
    let bridge = spawned(&runtime, "callbacks:CallsBack", 1);
    let handle = runtime.handle().clone();
    *locked(&RUNTIME) = Some(runtime);
    let work = bridge.clone();
    let working = handle.spawn(async move { work.send_work(with(json!({"function": "drop_runtime"})), None).await });
    until(|| working.is_finished());
    say("runtime gone");
    drop(bridge);
}

/// It waits for its own threads there, none of which is the one that the callback runs on.
#[test]
fn a_runtime_may_be_dropped_in_a_callback() {
    assert_eq!(alone("runtime_in_a_callback"), (0, "runtime gone".to_owned()));
}

fn exit_while_busy() {
    let runtime = Runtime::new().expect("a runtime");
    let bridge = spawned(&runtime, "callbacks:Sleeps", 1);
    runtime.spawn(async move { bridge.send_work(item("w-1"), None).await });
    until(|| WORKING.load(Ordering::SeqCst));
    say("working");
    std::process::exit(7);
}

#[test]
fn a_program_may_exit_while_an_agent_is_busy() {
    assert_eq!(alone("exit_while_busy"), (7, "working".to_owned()));
}
