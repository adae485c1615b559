"""The command `rerankd` with one more engine, `device`, whose passes may be slow, hang or fail.

python -m loadtest.device_service serve --registry ...
"""

from loadtest.device_engine import install
from rerankd.__main__ import main

if __name__ == "__main__":
    install()
    main()
