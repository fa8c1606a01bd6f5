//! Who may come in. In this order: the request is meant for this machine, it comes from no page of another origin, and it
//! brings the token. Only `/health` is answered without the last.
//!
//! - **Host.** A name that a foreign page has let point at 127.0.0.1 would make that page one of our own origin: only the
//!   names of loopback are taken. The port is not looked at: it may have been forwarded.
//! - **Origin.** Browsers name the page that asks; any other than ours is refused, also one on another port of this
//!   machine, to which cookies would go along. What they tell in `Sec-Fetch-Site` is held to the same, for requests that
//!   have no `Origin`.
//! - **Token.** As a bearer, or as a cookie that no script reads and that does not travel from other sites.

use crate::answer::Refusal;
use crate::token::Token;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};

const NAMES: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];
const SIGN_IN: &str = include_str!("page/sign_in.html");
/// Seconds for which a browser keeps the cookie.
const KEPT: u32 = 30 * 24 * 3600;
/// Bytes of the sign-in form.
const LARGEST_FORM: usize = 4_096;
const PLACE: &str = "<!-- refused -->";

/// What the door knows.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) token: Token,
    /// Cookies are shared by all ports of a host, so its name has ours.
    pub(crate) port: u16,
}

/// Lets in who may come in.
pub(crate) async fn enter(State(door): State<Door>, request: Request, next: Next) -> Response {
    let mut response = match door.judge(&request) {
        Ok(()) if request.uri().path() == "/login" && request.method() == Method::POST => door.sign_in(request).await,
        Ok(()) => next.run(request).await,
        Err(problem) if problem.code == codes::NO_TOKEN && asks_for_the_page(&request) => door.sign_in_page(""),
        Err(problem) => Refusal::from(problem).into_response(),
    };
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: with that a browser says of our own form that it comes from nowhere.
        (header::REFERRER_POLICY, "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Door {
    fn judge(&self, request: &Request) -> Result<(), Problem> {
        let headers = request.headers();
        let host = text(headers, header::HOST).or_else(|| request.uri().authority().map(|host| host.as_str()));
        let Some(host) = host.filter(|host| NAMES.contains(&name_of(host))) else {
            return Err(foreign("the Host is not this machine"));
        };
        if let Some(origin) = headers.get(header::ORIGIN)
            && origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://")) != Some(host)
        {
            return Err(foreign("a page of another origin asks"));
        }
        let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
        if matches!(site, Some("cross-site" | "same-site")) && !asks_for_the_page(request) {
            return Err(foreign("a page of another origin asks"));
        }
        let open = matches!(
            (request.method(), request.uri().path()),
            (&Method::GET | &Method::HEAD, "/health") | (&Method::POST, "/login")
        );
        if open || self.has_token(headers) {
            return Ok(());
        }
        Err(Problem::new(ProblemKind::InvalidInput, codes::NO_TOKEN, "the token is missing or wrong")
            .because("nothing but /health answers without it")
            .hint("curl -H @STORE.d/authorization, the file that `mnemosyne serve` names"))
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        if let Some(given) = text(headers, header::AUTHORIZATION) {
            return given.strip_prefix("Bearer ").is_some_and(|token| self.token.is(token));
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.any(|(name, value)| name == self.cookie() && self.token.is(value))
    }

    fn cookie(&self) -> String {
        format!("mnemosyne-{}", self.port)
    }

    /// The form of the sign-in page becomes a cookie.
    async fn sign_in(&self, request: Request) -> Response {
        let Ok(form) = to_bytes(request.into_body(), LARGEST_FORM).await else {
            return self.sign_in_page("This is no token.");
        };
        let form = String::from_utf8_lossy(&form);
        let given = form.split('&').find_map(|pair| pair.strip_prefix("token=")).unwrap_or_default();
        // Of what a form escapes a token holds nothing; the words before it, where the whole line was pasted, do.
        let given = given.rsplit(['+', ' ']).find(|part| !part.is_empty()).unwrap_or_default();
        let given = given.trim_end_matches("%0D%0A").trim_end_matches("%0A").trim_start_matches("%20");
        if !self.token.is(given) {
            return self.sign_in_page("This is not the token of this window.");
        }
        let cookie = format!("{}={given}; Path=/; HttpOnly; SameSite=Strict; Max-Age={KEPT}", self.cookie());
        let Ok(cookie) = HeaderValue::from_str(&cookie) else { return self.sign_in_page("This is no token.") };
        let mut response = Redirect::to("/").into_response();
        response.headers_mut().insert(header::SET_COOKIE, cookie);
        response
    }

    fn sign_in_page(&self, refused: &str) -> Response {
        (StatusCode::UNAUTHORIZED, Html(SIGN_IN.replace(PLACE, refused))).into_response()
    }
}

/// A browser that opens the page, and no script.
fn asks_for_the_page(request: &Request<Body>) -> bool {
    let accepts = text(request.headers(), header::ACCEPT).unwrap_or_default();
    request.method() == Method::GET && request.uri().path() == "/" && accepts.contains("text/html")
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn foreign(reason: &str) -> Problem {
    Problem::new(ProblemKind::InvalidInput, codes::FOREIGN_ORIGIN, "the request comes from elsewhere")
        .because(reason)
        .hint("open http://127.0.0.1:PORT/ in the browser, or forward the port: ssh -L PORT:127.0.0.1:PORT HOST")
}
