//! Whether a shell command can fail at all: one that cannot proves nothing about a change (**TRUTH-1**).
//!
//! Only what the text itself shows is judged here: what a list, a pipe, a `|| true` makes of an exit code. Whatever the
//! text does not show (a script that asserts nothing, a test that was green all along) is measured by the gates: green
//! before the change is no evidence. So every doubt is answered with "it can".
//!
//! The cases are `tests/shared/acceptance.json`.

const NEVER_FAIL: [&str; 4] = ["true", ":", "echo", "printf"];
/// Of a pipe only the exit code of the last command counts, and these have none of their own to give.
const NEVER_FAIL_IN_A_PIPE: [&str; 8] = ["cat", "head", "less", "more", "sort", "tail", "tee", "wc"];
const KEYWORDS: [&str; 7] = ["if", "for", "while", "until", "case", "function", "{"];

/// What follows a command of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    /// `;`, a line break, or the end.
    End,
    /// `&`
    Background,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `|`
    Pipe,
}

/// False for a command that exits with 0 whatever the project is like; true in every doubt.
pub fn can_fail(command: &str) -> bool {
    let Some(mut segments) = segments(command) else { return true };
    segments.retain(|(text, _)| !text.is_empty());
    let begins_with_keyword = |text: &str| text.split_whitespace().next().is_some_and(|word| KEYWORDS.contains(&word));
    command.contains("pipefail")
        || segments.iter().any(|(text, _)| begins_with_keyword(text))
        || list_can_fail(&segments)
}

fn list_can_fail(segments: &[(String, Operator)]) -> bool {
    let (mut result, mut chain, mut piped, mut stops_on_error) = (false, false, false, false);
    let mut joined_by = Operator::End;
    for (text, operator) in segments {
        if *operator == Operator::Pipe {
            piped = true;
            continue;
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let fails = one_can_fail(text, &words, piped);
        chain = match joined_by {
            Operator::And => chain || fails,
            Operator::Or => chain && fails,
            _ => fails,
        };
        let alone = joined_by == Operator::End && !piped;
        piped = false;
        if matches!(operator, Operator::And | Operator::Or) {
            joined_by = *operator;
            continue;
        }
        if alone && words == ["exit"] {
            return result; // with the exit code of what came before
        }
        result = (chain && *operator != Operator::Background) || (stops_on_error && result);
        if alone && words == ["exit", "0"] {
            return result; // nothing after it is run
        }
        stops_on_error |= words[0] == "set" && words[1..].iter().any(|word| sets_errexit(word));
        joined_by = Operator::End;
    }
    result
}

fn one_can_fail(text: &str, words: &[&str], piped: bool) -> bool {
    if let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        return can_fail(inner);
    }
    let assigned = words.iter().take_while(|word| is_assignment(word)).count();
    let words = &words[assigned..];
    if words.is_empty() || words == ["exit", "0"] || words == ["exit"] || words[0] == "set" {
        return false;
    }
    if text.contains("${") && text.contains('?') {
        return true; // ${NAME:?} ends the shell where NAME is not set
    }
    let name = words[0].rsplit('/').next().unwrap_or_default();
    !(NEVER_FAIL.contains(&name) || piped && NEVER_FAIL_IN_A_PIPE.contains(&name))
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
    })
}

fn sets_errexit(word: &str) -> bool {
    word == "errexit" || (word.starts_with('-') && word.contains('e'))
}

/// Splits at the operators outside quotes and parentheses; `None` in any doubt.
fn segments(command: &str) -> Option<Vec<(String, Operator)>> {
    let mut found = Vec::new();
    let mut text = String::with_capacity(command.len());
    let (mut quote, mut depth) = (None, 0_i32);
    let mut chars = command.chars().peekable();
    while let Some(char) = chars.next() {
        let after = chars.peek().copied();
        match (quote, char) {
            (Some(open), _) => {
                text.push(char);
                if char == '\\' && open != '\'' {
                    text.extend(chars.next());
                } else if char == open {
                    quote = None;
                }
            }
            (None, '\\') => {
                chars.next();
                if let Some(escaped) = after.filter(|escaped| *escaped != '\n') {
                    text.extend([char, escaped]);
                }
            }
            (None, '\'' | '"' | '`') => {
                quote = Some(char);
                text.push(char);
            }
            (None, '#') if text.chars().last().is_none_or(char::is_whitespace) => {
                while chars.next_if(|comment| *comment != '\n').is_some() {}
            }
            (None, '<') if after == Some('<') => return None, // a document follows, and it is no list of commands
            (None, '(' | ')') => {
                depth += if char == '(' { 1 } else { -1 };
                text.push(char);
            }
            (None, ';' | '\n' | '&' | '|') if depth <= 0 && !is_redirection(&text, char, after) => {
                let double = matches!(char, '&' | '|') && after == Some(char);
                let operator = match (char, double) {
                    ('&', true) => Operator::And,
                    ('|', true) => Operator::Or,
                    ('&', false) => Operator::Background,
                    ('|', false) => Operator::Pipe,
                    _ => Operator::End,
                };
                chars.next_if(|_| double);
                found.push((text.trim().to_owned(), operator));
                text.clear();
            }
            (None, _) => text.push(char),
        }
    }
    found.push((text.trim().to_owned(), Operator::End));
    (quote.is_none() && depth == 0).then_some(found)
}

/// `2>&1`, `<&3`, `&>file`: an ampersand that ends nothing.
fn is_redirection(before: &str, char: char, after: Option<char>) -> bool {
    char == '&' && (after == Some('>') || before.ends_with(['<', '>']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn truth_1_the_shared_cases_are_judged_as_they_say() {
        let text = include_str!("../../../tests/shared/acceptance.json");
        let cases: std::collections::BTreeMap<String, Vec<String>> = serde_json::from_str(text).unwrap();
        for (kind, commands) in cases {
            for command in commands {
                assert_eq!(can_fail(&command), kind == "can_fail", "{command:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "(?s).{0,60}") {
            can_fail(&text);
        }

        #[test]
        fn truth_1_whatever_stands_before_an_or_true_cannot_fail(text in "[a-h][a-h0-9 .-]{0,30}") {
            let command = format!("{text} || true");
            prop_assert!(!can_fail(&command));
        }
    }
}
