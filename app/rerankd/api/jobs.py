"""Jobs over HTTP, in the words of OpenAI's files and batches, so that its clients can be used as they are."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from rerankd.api.access import access_of
from rerankd.api.answers import ERROR_SCHEMA, json_answer
from rerankd.api.auth import key_required, security_of
from rerankd.api.middleware import claim_of
from rerankd.api.parsing.bodies import BodyReader
from rerankd.api.parsing.uploads import FormReader
from rerankd.config.options import explain
from rerankd.errors import InvalidRequest, NotConfigured
from rerankd.gateway.failures import CallerGone
from rerankd.gateway.gateway import Gateway
from rerankd.jobs.jobs import CHUNK_BYTES, File, Jobs
from rerankd.jobs.records import Job, Kept, Status

T = TypeVar("T")

FILES: Final = "/v1/files"
BATCHES: Final = "/v1/batches"
_MOST_METADATA: Final = 16
_PAGE: Final = 20
_LARGEST_PAGE: Final = 100
_ERRORS: Final[dict[str, Any]] = {
    "description": "An error; the message says what to change.",
    "content": {"application/json": {"schema": ERROR_SCHEMA}},
}
_UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "purpose": {"const": "batch", "type": "string"},
                        "file": {"type": "string", "format": "binary"},
                    },
                    "required": ["file", "purpose"],
                }
            }
        },
    }
}
_PAGING: Final[list[dict[str, Any]]] = [
    {"name": "after", "in": "query", "schema": {"type": "string"}},
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": _LARGEST_PAGE}},
]
_OFF: Final = (
    "this service keeps no jobs: its operator has to set RERANKD_JOBS_FOLDER (or RERANKD_JOBS_URL); "
    "`rerankd rank` answers files without a server"
)


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class BatchProblem(BaseModel):
    code: str
    message: str
    line: int | None
    param: None = None


class BatchProblems(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchProblem]


class BatchObject(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchProblems | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _or_empty(value: object) -> object:
    return {} if value is None else value


class NewBatch(BaseModel):
    """The body that begins a job."""

    input_file_id: str = Field(max_length=100, description="A file that was sent with purpose `batch`.")
    endpoint: str = Field(max_length=100, description="The path that answers every line, such as `/v1/rerank`.")
    completion_window: str = Field(
        default="24h", max_length=10, description="Hours until lines without an answer are given up, from 1h to 168h."
    )
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], BeforeValidator(_or_empty)
    ] = Field(default={}, max_length=_MOST_METADATA, description="Kept with the batch, for you.")


class JobEndpoints:
    def __init__(self, jobs: Jobs, bodies: BodyReader) -> None:
        self._jobs = jobs
        self._bodies = bodies

    async def send_file(self, request: Request) -> Response:
        """Send a file of requests, one a line: `custom_id`, `method`, `url` and `body`."""
        form = FormReader(request, chunk_bytes=CHUNK_BYTES)

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in form.file():
                # what follows goes to the disk, and not into memory
                claim_of(request.scope).change(0)
                yield chunk

        def name() -> str:
            if form.field("purpose") != "batch":
                raise InvalidRequest('the field purpose must be "batch"')
            return form.file_name

        try:
            file = await self._jobs.receive(_caller(request), chunks(), name)
        except ClientDisconnect:
            raise CallerGone from None
        return json_answer(_file(file).model_dump())

    async def files(self, request: Request) -> Response:
        """Your files, the newest first: those that you sent, and results of batches that have ended."""
        purpose = request.query_params.get("purpose")
        files = [file for file in await self._jobs.files(_caller(request)) if purpose in (None, "", file.purpose)]
        if request.query_params.get("order") != "asc":
            files.reverse()
        page, more = _page(request, files, lambda file: file.id)
        first, last = _ends([file.id for file in page])
        return json_answer(
            FileList(data=[_file(file) for file in page], first_id=first, last_id=last, has_more=more).model_dump()
        )

    async def file(self, file_id: str, request: Request) -> Response:
        """What is known of a file."""
        return json_answer(_file(await self._jobs.file(_caller(request), file_id)).model_dump())

    async def content(self, file_id: str, request: Request) -> Response:
        """The lines of a file."""
        content = await self._jobs.content(_caller(request), file_id)
        return StreamingResponse(content, media_type="application/octet-stream")

    async def delete_file(self, file_id: str, request: Request) -> Response:
        """Delete a file, unless an unfinished batch reads it (409)."""
        await self._jobs.delete_file(_caller(request), file_id)
        return json_answer(DeletedFile(id=file_id).model_dump())

    async def create(self, request: Request) -> Response:
        """Begin a batch over a file. Its lines are answered when no request waits, and count for your quota."""
        owner = _caller(request)
        try:
            body = await self._bodies.read_object(request, caller=owner)
        except ClientDisconnect:
            raise CallerGone from None
        try:
            wanted = NewBatch.model_validate(body.fields)
        except ValidationError as error:
            raise InvalidRequest(explain(error, NewBatch)) from None
        kept = await self._jobs.create(
            owner,
            input_id=wanted.input_file_id,
            endpoint=wanted.endpoint,
            window=wanted.completion_window,
            metadata=wanted.metadata,
        )
        return self._batch(kept)

    async def batches(self, request: Request) -> Response:
        """Your batches, the newest first."""
        kept = [*reversed(await self._jobs.jobs(_caller(request)))]
        page, more = _page(request, kept, lambda one: one.job.id)
        first, last = _ends([one.job.id for one in page])
        data = []
        for one in page:
            data.append(self._described(one).model_dump())
            # Each may have a hundred problems: others have their turn.
            await asyncio.sleep(0)
        return json_answer({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})

    async def batch(self, batch_id: str, request: Request) -> Response:
        """How far a batch is."""
        return self._batch(await self._jobs.job(_caller(request), batch_id))

    async def cancel(self, batch_id: str, request: Request) -> Response:
        """Begin no more lines of a batch. What was answered stays; the others have an error in the error file."""
        return self._batch(await self._jobs.cancel(_caller(request), batch_id))

    def _batch(self, kept: Kept) -> Response:
        return json_answer(self._described(kept).model_dump())

    def _described(self, kept: Kept) -> BatchObject:
        job, counts = kept.job, kept.counts
        answered, failed = self._jobs.results_of(kept)
        return BatchObject(
            id=job.id,
            endpoint=job.endpoint,
            errors=_problems(job),
            input_file_id=job.input_id,
            completion_window=job.window,
            status=job.status,
            output_file_id=answered,
            error_file_id=failed,
            created_at=job.created_at,
            expires_at=job.expires_at,
            request_counts=RequestCounts(total=job.total, completed=counts.answered, failed=counts.failed),
            metadata=dict(job.metadata) or None,
            **{
                f"{status}_at": job.entered_at.get(status.value) for status in Status if status is not Status.VALIDATING
            },
        )


def job_routes(jobs: Jobs | None, bodies: BodyReader, *, gateway: Gateway) -> APIRouter:
    """A router with files and batches, for keys that may rank. Without jobs every path says that they are off."""
    router = APIRouter(tags=["jobs"], dependencies=[key_required(gateway, "rerank")], default_response_class=Response)
    if jobs is None:
        for path in (FILES, f"{FILES}/{{rest:path}}", BATCHES, f"{BATCHES}/{{rest:path}}"):
            router.add_api_route(path, _say_off, methods=["GET", "POST", "DELETE"], include_in_schema=False)
        return router
    endpoints = JobEndpoints(jobs, bodies)
    keyed = security_of(gateway.keys)

    def add(method: str, path: str, endpoint: Callable[..., Any], answer: type[BaseModel] | None, **extra: Any) -> None:  # noqa: ANN401 - parts of an OpenAPI document
        described: dict[str, Any] = {"model": answer} if answer else {"content": {"application/octet-stream": {}}}
        responses: dict[int | str, dict[str, Any]] = {200: described, "default": _ERRORS}
        router.add_api_route(path, endpoint, methods=[method], responses=responses, openapi_extra={**keyed, **extra})

    new_batch = {"requestBody": {"required": True, "content": {"application/json": _NEW_BATCH}}}
    add("POST", FILES, endpoints.send_file, FileObject, **_UPLOAD)
    add("GET", FILES, endpoints.files, FileList, parameters=_PAGING)
    add("GET", f"{FILES}/{{file_id}}", endpoints.file, FileObject)
    add("GET", f"{FILES}/{{file_id}}/content", endpoints.content, None)
    add("DELETE", f"{FILES}/{{file_id}}", endpoints.delete_file, DeletedFile)
    add("POST", BATCHES, endpoints.create, BatchObject, **new_batch)
    add("GET", BATCHES, endpoints.batches, BatchList, parameters=_PAGING)
    add("GET", f"{BATCHES}/{{batch_id}}", endpoints.batch, BatchObject)
    add("POST", f"{BATCHES}/{{batch_id}}/cancel", endpoints.cancel, BatchObject)
    return router


_NEW_BATCH: Final[dict[str, Any]] = {
    "schema": NewBatch.model_json_schema(),
    "examples": {
        "batch": {
            "value": {"input_file_id": "file-0123", "endpoint": "/v1/rerank", "completion_window": "24h"},
        }
    },
}


async def _say_off() -> Response:
    raise NotConfigured(_OFF)


def _caller(request: Request) -> str:
    return access_of(request.scope).call.key


def _file(file: File) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.name,
        purpose=file.purpose,
    )


def _problems(job: Job) -> BatchProblems | None:
    if not job.problems:
        return None
    problems = [BatchProblem(code=problem.code, message=problem.message, line=problem.line) for problem in job.problems]
    return BatchProblems(data=problems)


def _page(request: Request, entries: Sequence[T], identity: Callable[[T], str]) -> tuple[Sequence[T], bool]:
    """The entries behind `after`, and whether there are more of them."""
    given = request.query_params.get("limit", "")
    if given and not (given.isascii() and given.isdecimal() and int(given[:9]) > 0):
        raise InvalidRequest("limit must be a positive whole number")
    limit = min(int(given[:9]) if given else _PAGE, _LARGEST_PAGE)
    after = request.query_params.get("after")
    places = [place for place, entry in enumerate(entries) if identity(entry) == after]
    start = places[0] + 1 if places else 0
    return entries[start : start + limit], start + limit < len(entries)


def _ends(ids: Sequence[str]) -> tuple[str | None, str | None]:
    return (ids[0], ids[-1]) if ids else (None, None)
