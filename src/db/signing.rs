//! Keys that all instances of one database sign with.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use chrono::Utc;

use super::{Db, error::Error};

/// Bytes of a key: as many as an HMAC with SHA-256 can use.
const LENGTH: usize = 32;

impl Db {
    /// The key for `purpose`, the same on every instance; the first to ask makes it.
    ///
    /// # Errors
    ///
    /// As any write and read; [`Error::Query`] also where the migrations were not applied yet.
    pub async fn signing_key(&self, purpose: &'static str) -> Result<Vec<u8>, Error> {
        let mut fresh = [0; LENGTH];
        let filled = SystemRandom::new().fill(&mut fresh);
        filled.map_err(|_| Error::Query(sqlx::Error::Protocol("no randomness".to_owned())))?;
        on!(self, router => {
            let session = router.session(None);
            sqlx::query(
                "INSERT INTO portway_signing_keys (purpose, secret, created_at) \
                 VALUES ($1, $2, $3) ON CONFLICT (purpose) DO NOTHING",
            )
            .bind(purpose)
            .bind(&fresh[..])
            .bind(Utc::now())
            .execute(session.write())
            .await
            .map_err(Error::of)?;
            // On the primary, as another instance may have been first, a moment ago.
            sqlx::query_scalar("SELECT secret FROM portway_signing_keys WHERE purpose = $1")
                .bind(purpose)
                .fetch_one(session.read().strong())
                .await
                .map_err(Error::of)
        })
    }
}
