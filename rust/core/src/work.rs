//! Work items and results: the same fields as the pydantic models, held together by a test.

use crate::state::{AgentRole, Phase};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

fn default_priority() -> u8 {
    5
}

fn default_timeout() -> f64 {
    600.0
}

fn first_attempt() -> u32 {
    1
}

/// One thing for one agent to do, in its public form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkItem {
    /// Unique in the store.
    pub id: String,
    /// For people and for the agent.
    pub description: String,
    /// The phase it belongs to.
    pub phase: Phase,
    /// The role that does it.
    pub role: AgentRole,
    /// 0 (last) to 10 (first).
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// Items that must be done before.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// Path prefixes relative to the workspace.
    #[serde(default)]
    pub file_scope: Vec<String>,
    /// What the agent needs to know.
    #[serde(default)]
    pub context: Map<String, Value>,
    /// Time limit of one claim, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: f64,
    /// From 1; rises with a rejection only.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
}

/// Tokens and money.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    /// Model turns that completed.
    pub turns: u64,
    /// Input tokens outside the cache.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Input tokens read from the cache.
    pub cache_read_tokens: u64,
    /// Input tokens written to the cache.
    pub cache_write_tokens: u64,
    /// List price in US dollars.
    pub cost_usd: f64,
}

impl Usage {
    /// Adds another usage to this one.
    pub fn add(&mut self, other: &Usage) {
        self.turns += other.turns;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cache_read_tokens += other.cache_read_tokens;
        self.cache_write_tokens += other.cache_write_tokens;
        self.cost_usd += other.cost_usd;
    }

    /// All tokens, whatever their price.
    pub fn tokens(&self) -> u64 {
        self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens
    }
}

/// A stored artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactRef {
    /// Unique within its run and item.
    pub name: String,
    /// Of the content, hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// What an agent returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkResult {
    /// Whether the agent says that it did what was asked.
    pub success: bool,
    /// Keys by kind of item; see `advance`.
    #[serde(default)]
    pub data: Map<String, Value>,
    /// What it stored.
    #[serde(default)]
    pub artifacts: Vec<ArtifactRef>,
    /// What was observed (TRUTH-1).
    #[serde(default)]
    pub evidence: Vec<Value>,
    /// Why it did not succeed.
    #[serde(default)]
    pub error: Option<String>,
    /// For information; the journal's figures are the ones that count.
    #[serde(default)]
    pub usage: Usage,
}

impl WorkResult {
    /// A success with data.
    pub fn success(data: Map<String, Value>) -> Self {
        Self { success: true, data, artifacts: Vec::new(), evidence: Vec::new(), error: None, usage: Usage::default() }
    }

    /// An honest failure: it burns an attempt, not the agent.
    pub fn failure(error: impl Into<String>) -> Self {
        Self { success: false, error: Some(error.into()), ..Self::success(Map::new()) }
    }

    /// A text of `data`, if it is one.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }

    /// Whether `data[key]` is `true`.
    pub fn flag(&self, key: &str) -> bool {
        self.data.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}
