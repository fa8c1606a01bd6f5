//! Problems as answers of HTTP: the same code, words and figures that the command line shows, with the status that fits.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use serde_json::{Value, json};

/// Why there is no other answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    problem: Problem,
    status: StatusCode,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let status = status(&problem);
        Self { problem, status }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(form(&self.problem))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// `{"error": {code, message, reason, hint}}`, with `problems` and other figures where there are any.
fn form(problem: &Problem) -> Value {
    let Problem { code, message, reason, hint, data, .. } = problem;
    let mut error = json!({"code": code, "message": message, "reason": reason, "hint": hint});
    if let (Some(data), Some(error)) = (data, error.as_object_mut()) {
        for (key, value) in data.iter() {
            error.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    json!({"error": error})
}

fn status(problem: &Problem) -> StatusCode {
    match (problem.code.as_str(), problem.kind) {
        (codes::NO_TOKEN, _) => StatusCode::UNAUTHORIZED,
        (codes::FOREIGN_ORIGIN, _) => StatusCode::FORBIDDEN,
        (codes::REQUEST_UNREADABLE | codes::PROMPT_UNREADABLE, _) => StatusCode::BAD_REQUEST,
        (codes::NO_ENDPOINT | codes::RUN_NOT_FOUND | codes::NO_AGENT | codes::NO_ITEM, _) => StatusCode::NOT_FOUND,
        (codes::NOBODY_WORKS | codes::RUN_LIVES | codes::RUN_ENDED | codes::WORKSPACE_BUSY, _) => StatusCode::CONFLICT,
        (_, ProblemKind::InvalidInput | ProblemKind::Budget) => StatusCode::UNPROCESSABLE_ENTITY,
        // The machine, the store, a key or an agent: nothing that another request would change.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A request that cannot be read.
pub(crate) fn unreadable(reason: impl Into<String>) -> Refusal {
    Problem::new(ProblemKind::InvalidInput, codes::REQUEST_UNREADABLE, "the request cannot be read")
        .because(reason)
        .hint("GET /openapi.json says what is taken")
        .into()
}

/// A body of another type than JSON.
pub(crate) fn no_json() -> Refusal {
    Refusal { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, ..unreadable("its Content-Type is not application/json") }
}

/// A body with more in it than anything of ours needs.
pub(crate) fn too_large(most: usize) -> Refusal {
    let problem = Problem::new(ProblemKind::InvalidInput, codes::PROMPT_UNREADABLE, "the request cannot be read")
        .because(format!("its body holds more than {most} bytes"))
        .hint("put long material into files of the workspace, and say where it is");
    Refusal { problem, status: StatusCode::PAYLOAD_TOO_LARGE }
}

/// A method that an endpoint does not have.
pub(crate) fn wrong_method(what: String) -> Refusal {
    Refusal { problem: no_endpoint(what), status: StatusCode::METHOD_NOT_ALLOWED }
}

/// What no route is for.
pub(crate) fn no_endpoint(what: String) -> Problem {
    Problem::new(ProblemKind::InvalidInput, codes::NO_ENDPOINT, what).hint("GET /openapi.json says what there is")
}
