//! [`PythonHost`]: the tree's `AgentHost`, with Python behind it.

use crate::loop_thread::{LoopThread, unique};
use crate::port::Message;
use async_trait::async_trait;
use mnemosyne_runtime::{AgentHost, AgentStart, Assignment, Done, HostError, WorkKey};
use mnemosyne_store::Store;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Agents of one tree on the loop thread of this process.
pub struct PythonHost {
    inner: Arc<HostInner>,
}

/// What upcalls need of a host.
pub(crate) struct HostInner {
    id: u64,
    thread: Arc<LoopThread>,
    pub(crate) store: Arc<dyn Store>,
    /// Where runs keep their trees; `None` for a standalone bridge.
    directory: Option<PathBuf>,
}

impl PythonHost {
    /// A host on the loop thread of this process, which is started if there is none.
    ///
    /// # Errors
    /// Python was never initialised, or the package cannot be imported: permanent.
    pub async fn launch(
        runtime: &Handle,
        store: Arc<dyn Store>,
        directory: Option<PathBuf>,
    ) -> Result<PythonHost, HostError> {
        let thread = LoopThread::shared(runtime).await?;
        let inner = Arc::new(HostInner { id: unique(), thread, store, directory });
        inner.thread.shared.enlist(inner.id, &inner);
        Ok(PythonHost { inner })
    }

    fn describe(&self) -> Value {
        json!({"id": self.inner.id, "boot": self.inner.store.boot(), "directory": self.inner.directory})
    }
}

impl Drop for HostInner {
    fn drop(&mut self) {
        self.thread.shared.forget(self.id);
    }
}

#[async_trait]
impl AgentHost for PythonHost {
    async fn start(&self, start: AgentStart) -> Result<(), HostError> {
        let value = json!({
            "host": self.describe(), "agent_id": start.agent_id, "role": start.role, "generation": start.generation,
            "source": start.spec.source, "config": start.spec.config,
        });
        self.inner.thread.shared.ask(|ticket| Message::Start { ticket, value }).await
    }

    fn submit(&self, work: Assignment, done: Done) {
        let mut value = work.value;
        if let Some(object) = value.as_object_mut() {
            object.insert("host".into(), json!(self.inner.id));
            object.insert("agent_id".into(), json!(work.agent_id));
            object.insert("generation".into(), json!(work.generation));
            if let (Some(run), Some(directory)) =
                (object.get_mut("run").and_then(Value::as_object_mut), &self.inner.directory)
                && let Some(id) = run.get("id").and_then(Value::as_str)
            {
                let directory = directory.join("runs").join(id);
                run.insert("directory".into(), json!(directory));
            }
        }
        self.inner.thread.shared.submit(work.key.0, value, done);
    }

    fn cancel(&self, key: WorkKey, reason: &str) {
        self.inner.thread.shared.mailbox.push(Message::Cancel { key: key.0, reason: reason.to_owned() });
    }

    async fn stop(&self, agent_id: &str, generation: u64) {
        let value = json!({"host": self.inner.id, "agent_id": agent_id, "generation": generation});
        // A loop that has ended has forgotten the agent already.
        let _ = self.inner.thread.shared.ask(|ticket| Message::Stop { ticket, value }).await;
    }

    fn heartbeat_age(&self) -> Option<Duration> {
        self.inner.thread.shared.heartbeat_age()
    }
}
