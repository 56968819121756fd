-- Roles and databases of MLflow and Prefect, each able to reach only its own. Passwords come from the environment.
\set ON_ERROR_STOP on
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv prefect_password PREFECT_DB_PASSWORD

CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_users OWNER mlflow;
CREATE DATABASE prefect OWNER prefect;
REVOKE CONNECT ON DATABASE mlflow, mlflow_users, prefect FROM PUBLIC;
\connect prefect
CREATE EXTENSION pg_trgm; -- Prefect's migrations ask for it, and only a superuser may be sure to add it
