//! Query parameters, each read by name; what is wrong with one is said with its name, its value and what is allowed.

use std::collections::BTreeMap;

use actix_web::HttpRequest;

use super::problem::Problem;

/// Most entries on a page.
const MOST_PER_PAGE: usize = 1000;
/// Entries on a page by default.
const PER_PAGE: usize = 100;
/// Longest parameter, in characters: more than the longest member that makes sense. All that a path knows fit into a request's line.
const LONGEST: usize = 1024;

/// The parameters of one request.
#[derive(Debug)]
pub(crate) struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads the query; only the `known` names may stand there, each once.
    pub(crate) fn read(request: &HttpRequest, known: &[&str]) -> Result<Self, Problem> {
        let mut read = BTreeMap::new();
        for (name, value) in form(request.query_string()) {
            if !known.contains(&name.as_str()) {
                let allowed = if known.is_empty() { "no parameters".to_owned() } else { known.join(", ") };
                return Err(Problem::invalid(&name, &value, &allowed));
            }
            if value.chars().count() > LONGEST {
                return Err(Problem::invalid(&name, &value, &format!("at most {LONGEST} characters")));
            }
            if read.insert(name.clone(), value.clone()).is_some() {
                return Err(Problem::invalid(&name, &value, "once"));
            }
        }
        Ok(Self(read))
    }

    /// A parameter; one that is empty counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A parameter by one of its names; one that is there and empty is none of them.
    pub(crate) fn choice<T>(
        &self,
        name: &str,
        usual: T,
        allowed: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Problem> {
        let Some(value) = self.0.get(name) else { return Ok(usual) };
        parse(value).ok_or_else(|| Problem::invalid(name, value, allowed))
    }

    /// Values separated by commas, each by one of its names; none where the parameter is absent.
    pub(crate) fn choices<T>(
        &self,
        name: &str,
        allowed: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, Problem> {
        let Some(values) = self.0.get(name) else { return Ok(Vec::new()) };
        let allowed = format!("{allowed}, several separated by commas");
        let parse = |value: &str| parse(value.trim()).ok_or_else(|| Problem::invalid(name, value, &allowed));
        values.split(',').map(parse).collect()
    }

    /// `page` and `per_page`.
    pub(crate) fn paging(&self) -> Result<(usize, usize), Problem> {
        let number = |name: &str, usual: usize, most: usize| {
            let allowed = format!("a whole number from 1 to {most}");
            self.choice(name, usual, &allowed, |text| text.parse().ok().filter(|n| (1..=most).contains(n)))
        };
        Ok((number("page", 1, 1_000_000)?, number("per_page", PER_PAGE, MOST_PER_PAGE)?))
    }
}

/// Names and values of a query.
fn form(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use actix_web::test::TestRequest;

    use super::*;

    fn read(query: &str) -> Result<Params, Problem> {
        Params::read(
            &TestRequest::with_uri(&format!("/x?{query}")).to_http_request(),
            &["page", "per_page", "q"],
        )
    }

    #[test]
    fn values_are_decoded() {
        let params = read("q=a%20b+c%2B%C3%A9&page=3").unwrap();
        assert_eq!(params.get("q"), Some("a b c+é"));
        assert_eq!(params.paging().unwrap(), (3, 100));
        assert_eq!(read("q=").unwrap().get("q"), None);
    }

    #[test]
    fn choices_are_read_one_by_one_and_empty_ones_are_refused() {
        let parse = |value: &str| value.parse::<u8>().ok();
        let read = |query: &str| read(query).unwrap().choices("q", "numbers", parse);
        assert_eq!(read("page=1").unwrap(), Vec::<u8>::new());
        assert_eq!(read("q=1,%202").unwrap(), [1, 2]);
        for wrong in ["q=", "q=1,", "q=,1", "q=1,,2", "q=x"] {
            let problem = read(wrong).unwrap_err().to_string();
            assert!(problem.contains("allowed: numbers, several separated by commas"), "{wrong}: {problem}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let text = |query: &str| match read(query).and_then(|params| params.paging()) {
            Ok(paging) => panic!("{query} was taken: {paging:?}"),
            Err(problem) => problem.to_string(),
        };
        assert_eq!(text("pages=3"), "Invalid request: pages = \"3\": allowed: page, per_page, q");
        assert!(text("page=0").contains("page = \"0\": allowed: a whole number from 1 to"));
        assert!(
            text("per_page=1001").contains("per_page = \"1001\": allowed: a whole number from 1 to 1000")
        );
        assert!(text("page=1&page=2").contains("allowed: once"));
        assert!(text("page=").contains("page = \"\": allowed: a whole number"));
        assert!(text(&format!("q={}", "x".repeat(5000))).contains("at most 1024 characters"));
    }
}
