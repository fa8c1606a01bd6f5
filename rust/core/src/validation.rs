//! Everything that is wrong with a plan or a work item, all at once: each problem with its path, its value and its fix.
//!
//! One judge for both languages: `python/mnemosyne/validation.py` reads what has not the form of a plan or an item yet, and
//! asks here for all else. The cases are `tests/shared/validation.json`. Nothing is stored and no request is sent before
//! they pass. *Warnings*, which are only shown, are findings without a code.

use crate::error::{Code, Problem, ProblemKind, codes};
use crate::work::WorkItem;
use serde::Serialize;
use serde_json::{Value, json};

/// Bytes of a description; more than any model reads.
pub const LARGEST_TEXT: usize = 1_000_000;
/// Dependencies of one item, and tasks of a plan: more is a mistake of whoever made them.
pub const MOST_ENTRIES: usize = 10_000;
/// Bytes of an item's context, as JSON.
pub const LARGEST_CONTEXT: usize = 10_000_000;
/// Characters of an id.
pub const LONGEST_ID: usize = 200;
/// Characters of a value that a finding repeats.
const MOST_SHOWN: usize = 60;
/// Problems that the reason names; the figures have them all.
const MOST_TOLD: usize = 20;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `MN-####`; empty for a warning.
    pub code: Code,
    /// Where: `tasks[0].depends_on[1]`.
    pub path: String,
    /// What stands there, shortened.
    pub value: String,
    /// What is wrong with it.
    pub message: String,
    /// What to write instead.
    pub fix: String,
}

impl Finding {
    /// A finding about a value.
    pub fn new(code: Code, path: impl Into<String>, value: &str, message: impl Into<String>, fix: &str) -> Self {
        let mut shown: String =
            value.chars().take(MOST_SHOWN).map(|char| if char.is_control() { ' ' } else { char }).collect();
        if shown.len() < value.len() {
            shown.push_str("...");
        }
        Self { code, path: path.into(), value: shown, message: message.into(), fix: fix.to_owned() }
    }

    /// What may be meant otherwise.
    pub(crate) fn warning(path: impl Into<String>, value: &str, message: impl Into<String>, fix: &str) -> Self {
        Self::new("", path, value, message, fix)
    }
}

/// Refuses `what` where anything was found.
///
/// # Errors
/// One problem under the code of the first finding, with all of them in its figures.
pub fn refuse(what: &str, findings: &[Finding]) -> Result<(), Problem> {
    let Some((first, others)) = findings.split_first() else {
        return Ok(());
    };
    let said = |finding: &Finding| format!("{}: {}", finding.path, finding.message);
    let message = match others.len() {
        0 => format!("the {what} cannot be used at {}", said(first)),
        more => format!("the {what} has {} problems, the first at {}", more + 1, said(first)),
    };
    let reason: Vec<String> = others.iter().take(MOST_TOLD).map(|other| format!("also at {}", said(other))).collect();
    let all: Vec<Value> = findings.iter().map(|finding| json!(finding)).collect();
    Err(Problem::new(ProblemKind::InvalidInput, first.code, message)
        .because(reason.join("; "))
        .hint(format!("{}; nothing was stored", first.fix))
        .with("problems", all))
}

/// Refuses a prompt that no model could read.
///
/// # Errors
/// It is empty, too long, or no text.
pub fn check_prompt(text: &str) -> Result<(), Problem> {
    let refused = |code, message| Err(Problem::new(ProblemKind::InvalidInput, code, message));
    if text.trim().is_empty() {
        return refused(codes::PROMPT_EMPTY, "the prompt is empty");
    }
    if text.len() > LARGEST_TEXT {
        return refused(codes::PROMPT_UNREADABLE, "the prompt holds more than 1,000,000 bytes");
    }
    if text.contains('\0') {
        return refused(codes::PROMPT_UNREADABLE, "the prompt holds a NUL character, so it is no text");
    }
    Ok(())
}

/// Everything that is wrong with a work item of a user's own.
pub fn item_findings(item: &WorkItem) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |code, path: &str, value: &str, message: &str, fix: &str| {
        found.push(Finding::new(code, path, value, message, fix));
    };
    let invalid = codes::ITEM_INVALID;
    if item.id.trim().is_empty() || item.id.chars().count() > LONGEST_ID || item.id.chars().any(char::is_control) {
        let fix = "give it an id of 1 to 200 printable characters that is unique in the store";
        add(invalid, "id", &item.id, "this is no id", fix);
    }
    if item.description.trim().is_empty() {
        add(invalid, "description", "", "it is empty", "say what is to be done");
    }
    if item.description.len() > LARGEST_TEXT {
        let fix = "put long material into files, and say where they are";
        add(invalid, "description", &item.description, "it holds more than 1,000,000 bytes", fix);
    }
    if item.description.contains('\0') {
        add(invalid, "description", "", "it holds a NUL character, so it is no text", "take it out");
    }
    if item.priority > 10 {
        add(invalid, "priority", &item.priority.to_string(), "it is out of range", "use 0 (last) to 10 (first)");
    }
    if item.depends_on.len() > MOST_ENTRIES {
        let count = item.depends_on.len().to_string();
        add(invalid, "depends_on", &count, "it has more than 10,000 entries", "depend on fewer items");
    }
    for (at, id) in item.depends_on.iter().take(MOST_ENTRIES).enumerate() {
        let path = format!("depends_on[{at}]");
        if id.trim().is_empty() {
            add(invalid, &path, id, "this is no id", "name a work item, or take the entry out");
        } else if *id == item.id {
            add(codes::PLAN_CYCLE, &path, id, "the item depends on itself", "take the entry out");
        }
    }
    for (at, path) in item.file_scope.iter().enumerate() {
        if !is_inside(path) {
            let fix = "name a path inside the workspace, relative to it";
            add(invalid, &format!("file_scope[{at}]"), path, "it is not inside the workspace", fix);
        }
    }
    if !item.timeout_seconds.is_finite() || item.timeout_seconds <= 0.0 {
        let value = item.timeout_seconds.to_string();
        add(invalid, "timeout_seconds", &value, "it is no time limit", "give a positive number of seconds");
    }
    if item.attempt == 0 {
        add(invalid, "attempt", "0", "attempts are counted from 1", "leave it out");
    }
    if serde_json::to_string(&item.context).map_or(0, |text| text.len()) > LARGEST_CONTEXT {
        let fix = "put large material into files, and name them in the context";
        add(invalid, "context", "", "it holds more than 10,000,000 bytes as JSON", fix);
    }
    found
}

/// What of a work item may be meant otherwise.
pub fn item_warnings(item: &WorkItem) -> Vec<Finding> {
    let mut found = Vec::new();
    warn_of_vague_words(|| "description".to_owned(), &item.description, &mut found);
    found
}

/// Words that two people understand differently, in order, each with the question whose answer would take its place.
const VAGUE: [(&str, &str); 22] = [
    ("appropriate", "which one is it?"),
    ("as needed", "when is it needed?"),
    ("better", "what can one see that is different afterwards?"),
    ("clean up", "what is to be gone, and how does one see that?"),
    ("easy to use", "who does what, in how many steps?"),
    ("efficient", "how much time or memory at most, for how much input?"),
    ("etc", "what are the others?"),
    ("fast", "how many seconds at most, for how much input?"),
    ("flexible", "which two cases must it serve?"),
    ("improve", "what can one see that is different afterwards?"),
    ("intuitive", "who does what, in how many steps?"),
    ("nice", "what can one see that is different afterwards?"),
    ("optimize", "what is measured, and which figure is enough?"),
    ("properly", "what would be wrong?"),
    ("robust", "which failures must it survive, and how?"),
    ("scalable", "how many, and how long may it take then?"),
    ("secure", "who must not be able to do what?"),
    ("simple", "what is it to leave out?"),
    ("somehow", "in which way?"),
    ("support for all", "which ones?"),
    ("user-friendly", "who does what, in how many steps?"),
    ("various", "which ones?"),
];

/// One warning for each vague word of a text, in the order in which they stand there; the path is made where one does.
pub(crate) fn warn_of_vague_words(path: impl Fn() -> String, text: &str, found: &mut Vec<Finding>) {
    let is_inside_a_word = |char: char| char.is_alphanumeric() || char == '_';
    let mut told = Vec::new();
    let mut before = ' ';
    for (at, char) in text.char_indices() {
        if is_inside_a_word(std::mem::replace(&mut before, char)) || !char.is_ascii_alphabetic() {
            continue;
        }
        let rest = &text[at..];
        let stands_here = |word: &str| {
            let begins = rest.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
            begins && !rest[word.len()..].starts_with(is_inside_a_word)
        };
        let letter = char.to_ascii_lowercase() as u8;
        let from = VAGUE.partition_point(|(word, _)| word.as_bytes()[0] < letter);
        let may_be = VAGUE[from..].iter().take_while(|(word, _)| word.as_bytes()[0] == letter);
        for (word, question) in may_be.filter(|(word, _)| stands_here(word)) {
            if !told.contains(word) {
                told.push(*word);
                let message = format!("the word {word:?} can mean many things");
                found.push(Finding::warning(path(), word, message, &format!("say instead: {question}")));
            }
        }
    }
}

/// A relative path without a step upwards, and not into a repository's own files, which no tree holds.
pub fn is_inside(path: &str) -> bool {
    !path.starts_with('/') && !path.contains('\0') && path.split('/').all(|part| part != ".." && part != ".git")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vague_word_is_found_in_any_case_and_only_as_a_word() {
        let found = |text: &str| {
            let mut found = Vec::new();
            warn_of_vague_words(String::new, text, &mut found);
            found.into_iter().map(|finding| finding.value).collect::<Vec<_>>()
        };
        for (word, _) in VAGUE {
            assert_eq!(found(&format!("it is ({}).", word.to_uppercase())), [word]);
            assert_eq!(found(&format!("it is x{word} {word}x {word}é é{word}")), [""; 0], "{word}");
        }
        assert_eq!(found("a robust, fast and Robust one, etc"), ["robust", "fast", "etc"]);
    }

    #[test]
    fn a_prompt_that_no_model_could_read_is_refused() {
        let code = |text: &str| check_prompt(text).unwrap_err().code;
        assert_eq!(code(" \n"), codes::PROMPT_EMPTY);
        assert_eq!(code("a\0b"), codes::PROMPT_UNREADABLE);
        assert_eq!(code(&"x".repeat(LARGEST_TEXT + 1)), codes::PROMPT_UNREADABLE);
        assert_eq!(check_prompt("make it"), Ok(()));
    }
}
