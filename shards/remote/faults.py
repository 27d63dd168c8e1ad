"""What errors of a store mean: whether they pass, and what is to be done about them."""

import errno

from shards.errors import BandstreamError

LIBRARIES = {"aiobotocore", "aiohttp", "adlfs", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs"}
LIBRARIES |= {"paramiko", "pyarrow", "smbprotocol", "urllib3"}
"""Whose errors are a store's and not ours."""
FOR_GOOD = FileNotFoundError | FileExistsError | PermissionError | NotADirectoryError | NotImplementedError
FOR_GOOD_NUMBERS = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FOR_GOOD_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"}
FOR_GOOD_NAMES |= {"NoRegionError", "InvalidRegionError", "UnknownEndpointError", "TokenRetrievalError", "InvalidURL"}
FOR_GOOD_STATUSES = {400, 401, 403, 405, 407, 410, 414, 451}
"""Errors that waiting does not mend; the last are of HTTP."""
REFUSED = {401, 403, 407}


def code_of(error: BaseException) -> str:
    """What an S3 server called its error."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def of_a_store(error: BaseException) -> bool:
    """Whether an error is the store's, or one of ours."""
    return isinstance(error, OSError | EOFError | NotImplementedError) or any(
        kind.__module__.partition(".")[0] in LIBRARIES for kind in type(error).__mro__
    )


def for_good(error: BaseException) -> bool:
    """Whether waiting does not mend it."""
    code = code_of(error)
    if code == "NoSuchUpload":  # its parts were cleared away: it is sent anew
        return False
    return (
        isinstance(error, FOR_GOOD)
        or type(error).__name__ in FOR_GOOD_NAMES
        or getattr(error, "errno", None) in FOR_GOOD_NUMBERS
        or getattr(error, "status", None) in FOR_GOOD_STATUSES
        or code in ("InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed")
    )


def explained(error: BaseException, url: str, bucket: str, met: bool, reading: bool) -> BandstreamError:
    """What is to be done about an error of the store.

    `met`: whether it has answered before; `reading`: whether it is read from alone.
    """
    code, name = code_of(error), type(error).__name__
    text = " ".join(str(error).split()) or name
    if code == "NoSuchBucket":
        return BandstreamError(f"{url}: there is no bucket {bucket}: {'' if reading else 'make it, or '}mend the URL")
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        how = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return BandstreamError(f"{url}: no credentials ({text}): {how}")
    if isinstance(error, PermissionError) or getattr(error, "status", None) in REFUSED:
        how = f"check the credentials, and that they may {'read' if reading else 'list, read, write and delete'} there"
        return BandstreamError(f"{url}: access denied ({text}): {how}")
    if isinstance(error, NotImplementedError) or getattr(error, "errno", None) in (errno.ENOSYS, errno.EROFS):
        return BandstreamError(f"{url} cannot be {'read' if reading else 'written'} ({text}): name another place")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        how = "make room and run the same command again, it goes on from there"
        return BandstreamError(f"{url}: no room is left there ({text}): {how}")
    if not met:
        how = "check the URL, the network and the endpoint (for S3: AWS_ENDPOINT_URL), and run the same command again"
        return BandstreamError(f"{url} cannot be reached ({text}): {how}")
    how = "what was fetched is kept" if reading else "it goes on from there"
    return BandstreamError(f"{url} failed again and again ({text}): mend that and run the same command again, {how}")
